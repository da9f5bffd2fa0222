"""What this machine can do, as a yardstick for the others: memory streams, integer and float peaks.

    python bench/limits.py [--threads 2] [--megabytes 256]

Compiles limits.cpp with the system's C++ compiler; x86-64 only.
"""

from __future__ import annotations

import argparse
import atexit
import functools
import json
import shutil
import subprocess
import tempfile
from dataclasses import astuple, dataclass
from pathlib import Path

SOURCE = Path(__file__).resolve().parent / "limits.cpp"


@dataclass(frozen=True)
class Limits:
    """GB/s of reading so many bytes; 10^9 int8 and f32 operations per second, a multiply-add is two; 0: unknown."""

    stream_gb_s: float = 0.0
    int8_gop_s: float = 0.0
    f32_gflop_s: float = 0.0

    def best(self, other: Limits) -> Limits:
        """Of two measurements the larger of each."""
        return Limits(*map(max, astuple(self), astuple(other)))


@functools.cache
def _program() -> Path | None:
    """limits.cpp compiled, kept until this process ends; None where there is no compiler or no x86-64."""
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        return None
    directory = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    flags = ["-O3", "-march=native", "-std=c++20", "-pthread"]
    command = [compiler, *flags, str(SOURCE), "-o", str(directory / "limits")]
    built = subprocess.run(command, capture_output=True, check=False)
    return None if built.returncode else directory / "limits"


def _ask(*words: int) -> Limits:
    program = _program()
    if program is None:
        return Limits()
    answer = subprocess.run([program, *map(str, words)], capture_output=True, check=True, text=True)
    return Limits(**json.loads(answer.stdout))


def measure(threads: int, megabytes: int) -> Limits:
    """Measure now, memory as the best of seven short reads; all zero where there is no compiler or no x86-64."""
    return _ask(threads, megabytes << 20)


def reads_per_second(threads: int, size: int, passes: int) -> float:
    """How often a second `size` bytes [16 MiB or more] are read, over `passes` times; 0: unknown."""
    return _ask(threads, size, passes).stream_gb_s * 1e9 / size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--megabytes", type=int, default=256)
    options = parser.parse_args()
    print(measure(options.threads, options.megabytes))


if __name__ == "__main__":
    main()
