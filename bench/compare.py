"""Datong beside llama.cpp on the same GGUF bits, the same threads, in one run, alternating.

    python bench/compare.py MODEL.gguf [--peer-python path/to/python/with/llama_cpp] [--rounds 7] [--threads 2]

Each engine lives in its own process and is asked in turn, A B A B …; printed are medians, the spread (least to most)
and the ratio of the medians. Nothing is installed. A CSV with machine, versions and commit goes into bench/results/.
"""

import argparse
import csv
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
PREFILL = (32, 128, 512)
DECODE = (16, 512)


@dataclass
class Worker:
    """One engine in its own process."""

    name: str
    command: list[str]
    process: subprocess.Popen[str] = field(init=False)
    version: str = ""

    def __post_init__(self) -> None:
        self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.version = self._read()["ready"]

    def _read(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{self.name} ended early: {' '.join(self.command)}")
        return json.loads(line)

    def ask(self, **command: object) -> float:
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        return self._read()["value"]


def tasks(tokens: int) -> list[tuple[str, dict]]:
    ids = [(i * 7919 + 13) % 40000 + 100 for i in range(2048)]  # any fixed, ordinary token ids
    rows = [(f"prefill {n}", {"do": "prefill", "ids": ids[:n]}) for n in PREFILL]
    return rows + [(f"decode at {n}", {"do": "decode", "ids": ids[:n], "tokens": tokens}) for n in DECODE]


def machine() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return f"{line.split(':')[1].strip()}, {len(os.sched_getaffinity(0))} cores"
    return platform.processor()


def commit() -> str:
    answer = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=HERE, capture_output=True, text=True)
    return answer.stdout.strip() or "unknown"


def measure(workers: list[Worker], rounds: int, tokens: int) -> dict[tuple[str, str], list[float]]:
    results: dict[tuple[str, str], list[float]] = {}
    for round_ in range(rounds + 1):  # the first is a warm-up
        for task, command in tasks(tokens):
            for worker in workers if round_ % 2 else workers[::-1]:
                value = worker.ask(**command)
                time.sleep(0.1)  # let the other's idle threads fall asleep
                if round_:
                    results.setdefault((task, worker.name), []).append(value)
        print(f"round {round_}/{rounds}", file=sys.stderr)
    for worker in workers:
        results["peak memory MiB", worker.name] = [worker.ask(do="memory")]
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--peer-python", default=sys.executable, help="an interpreter that has llama_cpp")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=96)
    options = parser.parse_args()
    tail = [str(options.model), str(options.threads), "2048"]
    ours = Worker("datong", [sys.executable, str(HERE / "peers/datong_worker.py"), *tail])
    peer = Worker("llama.cpp", [options.peer_python, str(HERE / "peers/llama_cpp_worker.py"), *tail])
    results = measure([ours, peer], options.rounds, options.tokens)

    header = [
        machine(),
        f"{options.threads} threads",
        options.model.name,
        ours.version,
        peer.version,
        f"commit {commit()}",
    ]
    print(" | ".join(header))
    print(f"{'task':<18}{'datong':>10}{'least':>9}{'most':>9}{'llama.cpp':>12}{'least':>9}{'most':>9}{'ratio':>8}")
    rows = []
    for task in dict.fromkeys(task for task, _ in results):
        a, b = results[task, "datong"], results[task, "llama.cpp"]
        row = [statistics.median(a), min(a), max(a), statistics.median(b), min(b), max(b)]
        row.append(row[0] / row[3])
        print(
            f"{task:<18}{row[0]:>10.1f}{row[1]:>9.1f}{row[2]:>9.1f}{row[3]:>12.1f}{row[4]:>9.1f}{row[5]:>9.1f}{row[6]:>8.2f}"
        )
        rows.append([task, *(f"{x:.2f}" for x in row)])
    target = HERE / "results" / f"compare-{options.model.stem}-{options.threads}t.csv"
    with target.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(
            [f"# {' | '.join(header)}; python bench/compare.py {options.model.name} --rounds {options.rounds}"]
        )
        writer.writerow(["task", "datong", "least", "most", "llama.cpp", "least", "most", "ratio"])
        writer.writerows(rows)
    print(f"written to {target.relative_to(HERE.parent)}", file=sys.stderr)


if __name__ == "__main__":
    main()
