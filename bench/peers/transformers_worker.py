"""transformers as a bench worker: MODEL THREADS CONTEXT. It widens the weights of a GGUF file to f32."""

import sys
import time
from pathlib import Path

import torch
import transformers
from worker import serve


def main() -> None:
    path, threads = Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(threads)
    load = transformers.AutoModelForCausalLM.from_pretrained
    model = load(path.parent, gguf_file=path.name, dtype=torch.float32).eval()

    def feed(ids: list[int], cache=None):
        with torch.inference_mode():
            return model(torch.tensor([ids]), past_key_values=cache, use_cache=True, logits_to_keep=1)

    def prefill(command: dict) -> float:
        start = time.perf_counter()
        feed(command["ids"])
        return len(command["ids"]) / (time.perf_counter() - start)

    def decode(command: dict) -> float:
        out = feed(command["ids"])
        start = time.perf_counter()
        for _ in range(command["tokens"]):
            out = feed([int(out.logits[0, -1].argmax())], out.past_key_values)
        return command["tokens"] / (time.perf_counter() - start)

    serve(f"transformers {transformers.__version__} (f32)", {"prefill": prefill, "decode": decode})


if __name__ == "__main__":
    main()
