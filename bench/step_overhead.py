"""What Python costs: `import datong`, the start of the command line, and a decode step around a device that is free.

    python bench/step_overhead.py CHECKPOINT_OR_PACKAGE [--steps 2000]

The step is that of the real engine with the device's answer replaced by one row of constant logits, so what is left is
scheduling, sampling and the chunk. Printed are the best and the median of 20 runs: the machine may be busy.
Measured 2026-11-23 on 2 busy virtual cores (x86-64, Python 3.11), best: 1.4 ms, 66 ms, 13 µs with SmolLM2.
"""

import argparse
import statistics
import subprocess
import sys
import time

import numpy as np

import datong

RUNS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a package, a checkpoint directory, a GGUF file or a known name")
    parser.add_argument("--steps", type=int, default=2000, help="decode steps in all")
    options = parser.parse_args()
    report("import datong", 1e3, "ms", [start("import datong") for _ in range(RUNS)])
    report("command line", 1e3, "ms", [start("from datong.cli.app import app") for _ in range(RUNS)])
    report("decode step", 1e6, "µs", steps(options.model, options.steps))


def report(what: str, factor: float, unit: str, seconds: list[float]) -> None:
    best, median = min(seconds) * factor, statistics.median(seconds) * factor
    print(f"{what:<16}{best:8.1f} {unit} best{median:8.1f} {unit} median")


def start(statement: str) -> float:
    """Seconds of one statement in a fresh interpreter, whose own start is not counted."""
    code = f"import time, typing, importlib; t = time.perf_counter(); {statement}; print(time.perf_counter() - t)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout)


def steps(name: str, count: int) -> list[float]:
    """Seconds per decode step, by run."""
    model = datong.load(name, cache_tokens=None)
    logits = np.random.default_rng(0).standard_normal((1, model.vocab_size)).astype(np.float32)
    model.engine.runner.run = lambda step: logits  # type: ignore[method-assign]
    each = min(count // RUNS, (model.context - 8) // RUNS)
    chunks = model.generate([1, 2, 3], max_tokens=each * RUNS + 2, ignore_eos=True, stream=True)
    next(chunks)
    seconds = []
    for _ in range(RUNS):
        begin = time.perf_counter()
        for _ in range(each):
            next(chunks)
        seconds.append((time.perf_counter() - begin) / each)
    chunks.close()
    return seconds


if __name__ == "__main__":
    main()
