"""llama.cpp as a bench worker: MODEL THREADS CONTEXT."""

import sys
import time

import llama_cpp
import numpy as np
from worker import serve

SEQUENCES = 16


class LlamaCpp:
    """A model and its context, driven by the C interface."""

    def __init__(self, path: str, threads: int, context: int) -> None:
        self.model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
        self.vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.threads, self.length, self.context, self.many = threads, context, None, None

    def open(self, sequences: int):
        """A context for so many sequences; one that holds a single one is not shared, as its cache is faster."""
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = self.length
        params.n_batch = params.n_ubatch = 512
        params.n_seq_max = sequences
        params.kv_unified = True
        params.n_threads = params.n_threads_batch = self.threads
        return llama_cpp.llama_init_from_model(self.model, params)

    def feed(self, ids: list[int]) -> int:
        """Run the tokens of the only sequence, give the likeliest next one."""
        for start in range(0, len(ids), 512):
            piece = ids[start : start + 512]
            array = (llama_cpp.llama_token * len(piece))(*piece)
            if llama_cpp.llama_decode(self.context, llama_cpp.llama_batch_get_one(array, len(piece))) != 0:
                raise RuntimeError("llama_decode failed")
        logits = llama_cpp.llama_get_logits_ith(self.context, -1)
        return int(np.argmax(np.ctypeslib.as_array(logits, shape=(self.vocab,))))

    def clear(self) -> None:
        if self.context is None:
            self.context = self.open(1)
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)

    def prefill(self, command: dict) -> float:
        self.clear()
        start = time.perf_counter()
        self.feed(command["ids"])
        return len(command["ids"]) / (time.perf_counter() - start)

    def decode(self, command: dict) -> float:
        self.clear()
        token = self.feed(command["ids"])
        start = time.perf_counter()
        for _ in range(command["tokens"]):
            token = self.feed([token])
        return command["tokens"] / (time.perf_counter() - start)

    def batch(self, command: dict) -> float:
        """Tokens per second of all sequences together, their prompts not counted."""
        count, prompt = command["sequences"], command["ids"]
        if self.many is None:
            self.many = self.open(SEQUENCES)
            self.tokens = llama_cpp.llama_batch_init(512, 0, 1)
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.many), True)
        for sequence in range(count):
            self.run([(t, p, sequence, p == len(prompt) - 1) for p, t in enumerate([200 + sequence, *prompt[1:]])])
        last = [300 + i for i in range(count)]
        start = time.perf_counter()
        for step in range(command["tokens"]):
            rows = [(token, len(prompt) + step, i, True) for i, token in enumerate(last)]
            last = self.run(rows)
        return count * command["tokens"] / (time.perf_counter() - start)

    def run(self, rows: list[tuple[int, int, int, bool]]) -> list[int]:
        """One step of (token, position, sequence, are its logits wanted); the likeliest next tokens."""
        b = self.tokens
        b.n_tokens = len(rows)
        for i, (token, position, sequence, wanted) in enumerate(rows):
            b.token[i], b.pos[i], b.n_seq_id[i], b.logits[i] = token, position, 1, wanted
            b.seq_id[i][0] = sequence
        if llama_cpp.llama_decode(self.many, b) != 0:
            raise RuntimeError("llama_decode failed")
        found = []
        for i, row in enumerate(rows):
            if row[3]:
                logits = llama_cpp.llama_get_logits_ith(self.many, i)
                found.append(int(np.argmax(np.ctypeslib.as_array(logits, shape=(self.vocab,)))))
        return found


def main() -> None:
    path, threads, context = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    worker = LlamaCpp(path, threads, context)
    worker.clear()
    commands = {"prefill": worker.prefill, "decode": worker.decode, "batch": worker.batch}
    serve(f"llama.cpp ({llama_cpp.__version__})", commands)


if __name__ == "__main__":
    main()
