"""ONNX Runtime GenAI as a bench worker: DIRECTORY THREADS CONTEXT.

It does not read GGUF: ort_genai_build.py makes the directory, and ORT GenAI's own builder rounds the weights again. So
its bits are not those of the other engines, though as many, in blocks as large. Its version says `(own int4)`.
"""

import json
import sys
import time
from pathlib import Path

import onnxruntime_genai as og
from worker import serve


class OrtGenai:
    """A model; each measurement has its own generator, made before the clock starts."""

    def __init__(self, path: Path, threads: int, context: int) -> None:
        config = og.Config(str(path))
        options = {"intra_op_num_threads": threads, "inter_op_num_threads": 1}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
        self.model, self.context = og.Model(config), context

    def open(self, length: int, sequences: int = 1) -> og.Generator:
        """For so many tokens of each sequence; none ends earlier."""
        if length > self.context:
            raise ValueError(f"{length} tokens do not fit a context of {self.context}")
        params = og.GeneratorParams(self.model)
        params.set_search_options(max_length=length, min_length=length, batch_size=sequences, do_sample=False)
        return og.Generator(self.model, params)

    def prefill(self, command: dict) -> float:
        generator = self.open(len(command["ids"]) + 1)
        start = time.perf_counter()
        generator.append_tokens(command["ids"])
        generator.generate_next_token()
        return len(command["ids"]) / (time.perf_counter() - start)

    def decode(self, command: dict) -> float:
        return self._decode([command["ids"]], command["tokens"])

    def batch(self, command: dict) -> float:
        """Tokens per second of all sequences together, their prompts not counted."""
        return self._decode([[200 + i, *command["ids"][1:]] for i in range(command["sequences"])], command["tokens"])

    def _decode(self, prompts: list[list[int]], tokens: int) -> float:
        length = len(prompts[0])
        generator = self.open(length + tokens + 1, len(prompts))
        generator.append_tokens([token for prompt in prompts for token in prompt])
        generator.generate_next_token()  # chosen from the logits of the prompt
        start = time.perf_counter()
        for _ in range(tokens):
            generator.generate_next_token()
        seconds = time.perf_counter() - start
        if generator.token_count() != length + tokens + 1:
            raise RuntimeError(f"ended at {generator.token_count()} tokens")
        return len(prompts) * tokens / seconds


def main() -> None:
    path, threads, context = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    og.disable_telemetry_events()
    worker = OrtGenai(path, threads, context)
    kind = (path / "kind.txt").read_text()
    commands = {"prefill": worker.prefill, "decode": worker.decode, "batch": worker.batch}
    serve(f"onnxruntime-genai {og.__version__} (own {kind})", commands)


if __name__ == "__main__":
    main()
