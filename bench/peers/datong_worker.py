"""Datong as a bench worker: MODEL THREADS CONTEXT."""

import sys
import time

from worker import serve

import datong


def main() -> None:
    path, threads, context = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    model = datong.load(path, threads=threads, context=context, cache_tokens=2 * context)
    run = 0

    def timings(command: dict, tokens: int):
        nonlocal run
        run += 1  # another first token each time, so that no prefix is found in the cache
        ids = [100 + run % 9000, *command["ids"][1:]]
        return model.generate(ids, max_tokens=tokens, ignore_eos=True).timings

    def batch(command: dict) -> float:
        """Tokens per second of all sequences together, their prompts not counted."""
        nonlocal run
        run += 1
        prompts = [[100 + run % 9000, 200 + i, *command["ids"][2:]] for i in range(command["sequences"])]
        marks: list[tuple[float, int]] = []
        stream = model.generate(prompts, max_tokens=command["tokens"], ignore_eos=True, stream=True)
        started: set[int] = set()
        count = 0
        for chunk in stream:
            count += len(chunk.tokens)
            started.add(chunk.index)
            if len(started) == len(prompts):
                marks.append((time.perf_counter(), count))
        (begin, first), (end, last) = marks[0], marks[-1]
        return (last - first) / (end - begin)

    serve(
        f"datong {datong.__version__}",
        {
            "prefill": lambda command: timings(command, 1).prefill_rate,
            "decode": lambda command: timings(command, command["tokens"] + 1).decode_rate,
            "batch": batch,
        },
    )


if __name__ == "__main__":
    main()
