"""llama.cpp as a bench worker: one JSON command a line on stdin, one JSON answer a line on stdout. See compare.py."""

import json
import resource
import sys
import time

import llama_cpp
import numpy as np


class LlamaCpp:
    def __init__(self, path: str, threads: int, context: int) -> None:
        model_params = llama_cpp.llama_model_default_params()
        self.model = llama_cpp.llama_model_load_from_file(path.encode(), model_params)
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = context
        params.n_batch = params.n_ubatch = 512
        params.n_threads = params.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        self.vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))

    def feed(self, ids: list[int]) -> int:
        """Run the tokens, give the likeliest next one."""
        for start in range(0, len(ids), 512):
            piece = ids[start : start + 512]
            array = (llama_cpp.llama_token * len(piece))(*piece)
            if llama_cpp.llama_decode(self.context, llama_cpp.llama_batch_get_one(array, len(piece))) != 0:
                raise RuntimeError("llama_decode failed")
        logits = llama_cpp.llama_get_logits_ith(self.context, -1)
        return int(np.argmax(np.ctypeslib.as_array(logits, shape=(self.vocab,))))

    def clear(self) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)

    def prefill(self, ids: list[int]) -> float:
        self.clear()
        start = time.perf_counter()
        self.feed(ids)
        return len(ids) / (time.perf_counter() - start)

    def decode(self, ids: list[int], tokens: int) -> float:
        self.clear()
        token = self.feed(ids)
        start = time.perf_counter()
        for _ in range(tokens):
            token = self.feed([token])
        return tokens / (time.perf_counter() - start)


def main() -> None:
    path, threads, context = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    worker = LlamaCpp(path, threads, context)
    print(json.dumps({"ready": f"llama.cpp ({llama_cpp.__version__})"}), flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        if command["do"] == "prefill":
            value = worker.prefill(command["ids"])
        elif command["do"] == "decode":
            value = worker.decode(command["ids"], command["tokens"])
        else:
            value = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"value": value}), flush=True)


if __name__ == "__main__":
    main()
