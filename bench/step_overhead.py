"""What Python and the C interface cost: `import datong`, the command line's start, a decode step around a free device.

    python bench/step_overhead.py CHECKPOINT_OR_PACKAGE [--steps 2000]

The step is that of the real engine with the device's answer replaced by one row of constant logits, so what is left is
scheduling, sampling and the chunk. Printed are the best and the median of 20 runs: the machine may be busy.
The C interface's cost is bounded from above by a whole step of a model so small (2 layers, width 64) that crossing
the interface is most of it: made ready, called, answered, arithmetic included; it is set against a step of the model.

Measured 2026-11-24 on 2 virtual cores (AMD EPYC, Python 3.11) with SmolLM2 Q4_1: import 1.4 ms, command line 71 ms,
decode step 13 µs (each the best); C interface at most 17.5 µs of 3,723 µs (medians), 0.47 %.
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

import datong

RUNS = 20
TINY = Path(__file__).parents[1] / "tests" / "data" / "goldens" / "llama3"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a package, a checkpoint directory, a GGUF file or a known name")
    parser.add_argument("--steps", type=int, default=2000, help="decode steps in all")
    options = parser.parse_args()
    report("import datong", 1e3, "ms", [start("import datong") for _ in range(RUNS)])
    report("command line", 1e3, "ms", [start("from datong.cli.app import app") for _ in range(RUNS)])
    report("decode step", 1e6, "µs", steps(options.model, options.steps))
    tiny, real = calls(str(TINY), threads=1), calls(options.model)
    report("C interface, at most", 1e6, "µs", tiny)
    report("step of the model", 1e6, "µs", real)
    print(f"{'share, at most':<22}{statistics.median(tiny) / statistics.median(real):8.2%}")


def report(what: str, factor: float, unit: str, seconds: list[float]) -> None:
    best, median = min(seconds) * factor, statistics.median(seconds) * factor
    print(f"{what:<22}{best:8.1f} {unit} best{median:8.1f} {unit} median")


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


def calls(name: str, threads: int | None = None) -> list[float]:
    """Seconds of each decode call of a device, from the host's arrays to the host's logits."""
    model = datong.load(name, threads=threads)
    run, seconds = model.engine.runner.run, []

    def timed(step: object) -> np.ndarray:
        begin = time.perf_counter()
        logits = run(step)  # type: ignore[arg-type]
        seconds.append(time.perf_counter() - begin)
        return logits

    model.engine.runner.run = timed  # type: ignore[method-assign]
    model.generate([1, 2, 3], max_tokens=min(200, model.context - 4), ignore_eos=True)
    return seconds[1:]  # the first is prefill


if __name__ == "__main__":
    main()
