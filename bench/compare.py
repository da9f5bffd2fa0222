"""Datong beside the programs that people use, on the same GGUF bits, with the same threads, in one run, alternating.

    python bench/compare.py MODEL.gguf [MODEL.gguf …] [--peer-python PYTHON] [--rounds 7] [--threads 2]

Each engine lives in its own process and is asked in turn, A B C, C B A …; those that wait are stopped (SIGSTOP), for
some spin for a while after an answer. Printed are medians, the spread (least to
most), the ratio of Datong's median to each peer's, and what share of the machine's limit (limits.py, measured in the
same run) Datong's figure is. Peers: llama.cpp, OpenVINO GenAI, transformers, ONNX Runtime GenAI; those that no given
interpreter has are named and left out. Nothing is installed. CSV and plot, with machine, versions and commit, go into
bench/results/; `--variants Q4_0 Q8_0 Q4_K` makes these of the first model by llama.cpp's own quantiser.

One peer has other bits: ONNX Runtime GenAI reads no GGUF, its own builder rounds the weights again, once, into a
directory beside other temporary files (peers/ort_genai_build.py). Its version then says `(own int4)`.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import plot
from limits import Limits, measure, reads_per_second

HERE = Path(__file__).resolve().parent
PEERS = {"llama.cpp": ("llama_cpp", "llama_cpp_worker.py"), "openvino": ("openvino_genai", "openvino_worker.py"),
         "transformers": ("transformers", "transformers_worker.py"),
         "ort-genai": ("onnxruntime_genai", "ort_genai_worker.py")}  # fmt: skip
BUILDERS = {"ort-genai": "ort_genai_build.py"}  # of peers that do not read GGUF: MODEL DIRECTORY
PREFILL, DECODE, SEQUENCES = (32, 128, 512, 2048), (16, 512, 4096), (1, 4, 16)
ANSWER = 256  # tokens of context beside the longest prompt
READS = "plain reads"
LOWER_IS_BETTER = ("first token", "peak memory")


class EndedEarlyError(Exception):
    """A worker's process is gone: it cannot open the model, most often."""


@dataclass
class Worker:
    """One engine in its own process."""

    name: str
    command: list[str]
    process: subprocess.Popen[str] = field(init=False)
    version: str = ""

    def __post_init__(self) -> None:
        self.process = subprocess.Popen(
            self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self.version = self._read()["ready"]

    def _read(self) -> dict:
        for line in self.process.stdout:
            if line.startswith("{"):  # some print banners
                return json.loads(line)
        raise EndedEarlyError(f"{self.name} ended early: {' '.join(self.command)}")

    def ask(self, **command: object) -> float | None:
        """The answer; None: it cannot do this."""
        self.process.send_signal(signal.SIGCONT)
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        answer = self._read()["value"]
        self.process.send_signal(signal.SIGSTOP)
        return answer

    def close(self) -> None:
        self.process.send_signal(signal.SIGCONT)
        self.process.stdin.close()
        self.process.wait()


@dataclass
class Reads:
    """The limit of decoding, asked as a Worker is: bytes of the weights read by plain loops."""

    threads: int
    size: int
    name: str = READS

    def ask(self, **command: object) -> float | None:
        """Reads of everything per second, over as many as there are tokens to decode; None: not a task of this kind."""
        if command["do"] != "decode":
            return None
        return reads_per_second(self.threads, self.size, int(str(command["tokens"]))) or None


def tasks(tokens: int, context: int) -> list[tuple[str, dict]]:
    """(name, command) of everything that is measured again and again."""
    ids = [(i * 7919 + 13) % 40000 + 100 for i in range(max(*PREFILL, *DECODE))]  # any fixed, ordinary token ids
    rows = [(f"prefill {n}", {"do": "prefill", "ids": ids[:n]}) for n in PREFILL if n <= context]
    rows += [(f"decode at {n}", {"do": "decode", "ids": ids[:n], "tokens": tokens}) for n in DECODE if n <= context]
    return rows + [
        (f"{n} at once", {"do": "batch", "ids": ids[:16], "sequences": n, "tokens": tokens}) for n in SEQUENCES
    ]


def machine() -> str:
    """Processor and cores."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return f"{line.split(':')[1].strip()}, {len(os.sched_getaffinity(0))} cores"
    return platform.processor()


def commit() -> str:
    """Of this tree."""
    answer = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=HERE, capture_output=True, text=True)
    return answer.stdout.strip() or "unknown"


def commands(
    model: Path, pythons: Sequence[str], threads: int, wanted: Sequence[str], context: int
) -> dict[str, list[str]]:
    """Worker commands by name, Datong first; peers that no interpreter has are named on stderr."""
    tail = [str(model), str(threads), str(context + ANSWER)]
    found = {"datong": [sys.executable, str(HERE / "peers/datong_worker.py"), *tail]}
    for name, (module, worker) in PEERS.items():
        if name not in wanted:
            continue
        check = f"import importlib.util as u, sys; sys.exit(u.find_spec('{module}') is None)"
        have = next((p for p in pythons if subprocess.run([p, "-c", check], check=False).returncode == 0), None)
        if have is None:
            print(f"{name}: not installed for {', '.join(pythons)}, left out", file=sys.stderr)
            continue
        source = built(name, model, have) if name in BUILDERS else model
        if source is not None:
            found[name] = [have, str(HERE / "peers" / worker), str(source), *tail[1:]]
    return found


def temporary(name: str) -> Path:
    """A file or directory beside this machine's other temporary files, kept for the next run."""
    return Path(os.environ.get("TMPDIR", "/tmp")) / name


def built(name: str, model: Path, python: str) -> Path | None:
    """The model as this peer wants it, made if it is not there or older; None: it cannot be made, and why is said."""
    target = temporary(f"{model.stem}.{name}")
    if target.exists() and target.stat().st_mtime > model.stat().st_mtime:
        return target
    print(f"{name}: its model is made in {target}", file=sys.stderr)
    command = [python, str(HERE / "peers" / BUILDERS[name]), str(model), str(target)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode == 0:
        return target
    lines = answer.stderr.strip().splitlines() or ["no reason given"]
    print(f"{name}: {lines[-1]}, left out", file=sys.stderr)
    return None


def first_token(name: str, command: list[str], prompt: list[int]) -> tuple[float, float | None]:
    """Seconds from starting the process to its first token, and its peak memory in MiB then."""
    begin = time.perf_counter()
    worker = Worker(name, command)
    worker.ask(do="prefill", ids=prompt)
    seconds = time.perf_counter() - begin
    memory = worker.ask(do="memory")
    worker.close()
    return seconds, memory


Results = dict[tuple[str, str], list[float]]


def run(
    named: dict[str, list[str]], reads: Reads, rounds: int, tokens: int, context: int
) -> tuple[Results, dict[str, str]]:
    """Everything, alternating; the first round warms up. Results by (task, engine), versions by engine."""
    results: Results = {}
    prompt = list(range(100, 132))
    for round_ in range(min(rounds, 3) + 1):
        for name, command in list(named.items()):
            try:
                seconds, _ = first_token(name, command, prompt)
            except EndedEarlyError as error:
                print(f"{error}: left out", file=sys.stderr)
                del named[name]
                continue
            if round_:
                results.setdefault(("first token, cold, s", name), []).append(seconds)
    workers = [Worker(name, command) for name, command in named.items()]
    turns: list[Worker | Reads] = [workers[0], reads, *workers[1:]]
    unable: set[tuple[str, str]] = set()
    for round_ in range(rounds + 1):
        for task, command in tasks(tokens, context):
            for worker in turns if round_ % 2 else turns[::-1]:
                if (task, worker.name) in unable:
                    continue
                value = worker.ask(**command)
                time.sleep(0.1)  # let the other's idle threads fall asleep
                if value is None:
                    unable.add((task, worker.name))
                elif round_:
                    results.setdefault((task, worker.name), []).append(value)
        print(f"round {round_}/{rounds}", file=sys.stderr)
    for worker in workers:
        results["peak memory MiB", worker.name] = [worker.ask(do="memory") or 0.0]
        worker.close()
    return results, {worker.name: worker.version for worker in workers}


def table(results: Results, names: Sequence[str], operations: int, limits: Limits) -> list[list[object]]:
    """Rows of the CSV: task, engine, median, least, most, Datong's ratio to it (above 1: better), share of limit.

    operations: of a prompt's token in matrices.
    """
    rows: list[list[object]] = []
    for task in dict.fromkeys(task for task, _ in results):
        own = statistics.median(results[task, "datong"])
        limit = statistics.median(results[task, READS]) if (task, READS) in results else 0.0  # per second
        if task.startswith("prefill"):
            limit = limits.int8_gop_s * 1e9 / operations
        for name in names:
            values = results.get((task, name))
            if not values:
                continue
            middle = statistics.median(values)
            ratio = middle / own if task.startswith(LOWER_IS_BETTER) else own / middle
            rows.append([task, name, round(middle, 3), round(min(values), 3), round(max(values), 3), round(ratio, 3),
                         round(middle / limit, 3) if limit else ""])  # fmt: skip
    return rows


def size_of(model: Path) -> tuple[int, int]:
    """Bytes of weights that a decoded token reads, and operations of a prompt's token in matrices.

    Of an embedding a token reads one row; the matrix counts only where it is the output matrix too. Of experts, those
    that a token chooses.
    """
    import datong
    from datong.engine.costs import Shape, cost

    loaded = datong.load(model, context=16)
    nodes = [(node, part.values) for part in loaded.engine.runner.program.parts for node in part.nodes]
    token, prompt = Shape(tokens=1, rows=1, context=1), Shape(tokens=512, rows=1, context=512)
    read = sum(cost(node, values, (), token, False).bytes for node, values in nodes)
    work = [cost(node, values, (), prompt, False) for node, values in nodes]
    return round(read), round(sum(c.integer + c.real for c in work) / prompt.tokens)


def compare(model: Path, options: argparse.Namespace) -> None:
    """One model: measure, print, write CSV and plot."""
    sizes = size_of(model)
    limits = measure(options.threads, max(32, sizes[0] >> 20))
    named = commands(model, options.peer_python or [sys.executable], options.threads, options.peers, options.context)
    reads = Reads(options.threads, sizes[0])
    results, versions = run(named, reads, options.rounds, options.tokens, options.context)
    limits = limits.best(measure(options.threads, max(32, sizes[0] >> 20)))  # a shared machine is not always as fast
    words = f"python bench/compare.py {model.name} --rounds {options.rounds} --threads {options.threads}"
    header = " | ".join([machine(), f"{options.threads} threads", model.name, *versions.values(), f"commit {commit()}",
                         f"limits: {limits.stream_gb_s:.1f} GB/s, {limits.int8_gop_s:.0f} int8 GOP/s, "
                         f"{limits.f32_gflop_s:.0f} f32 GFLOP/s", words])  # fmt: skip
    rows = table(results, [*named, READS], sizes[1], limits)
    print(header)
    print(f"{'task':<22}{'engine':<14}{'median':>10}{'least':>10}{'most':>10}{'datong is':>11}{'of limit':>10}")
    for task, name, *numbers, ratio, part in rows:
        text = "" if name == "datong" else f"{ratio:.2f} x"
        limit = f"{part:.0%}" if isinstance(part, float) else ""
        print(f"{task:<22}{name:<14}{numbers[0]:>10.2f}{numbers[1]:>10.2f}{numbers[2]:>10.2f}{text:>11}{limit:>10}")
    target = HERE / "results" / f"compare-{model.stem}-{options.threads}t.csv"
    with target.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([f"# {header}"])
        writer.writerow(["task", "engine", "median", "least", "most", "ratio", "of limit"])
        writer.writerows(rows)
    plot.write(target.with_suffix(".svg"), rows, f"{model.stem}, {options.threads} threads")
    print(f"written to {target.relative_to(HERE.parent)}", file=sys.stderr)


def variants(model: Path, wanted: Sequence[str], pythons: Sequence[str]) -> list[Path]:
    """The model in other formats, by llama.cpp's quantiser, beside this machine's other temporary files."""
    made = []
    for name in wanted:
        target = temporary(f"{model.stem.rsplit('.', 1)[0]}.{name}.gguf")
        if not target.exists():
            code = (
                "import sys, llama_cpp as l\n"
                "p = l.llama_model_quantize_default_params(); p.allow_requantize = True\n"
                "p.ftype = {'Q4_0': 2, 'Q4_1': 3, 'Q8_0': 7, 'Q4_K': 15}[sys.argv[3]]\n"
                "sys.exit(l.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), p))"
            )
            subprocess.run([pythons[0], "-c", code, str(model), str(target), name], check=True, capture_output=True)
        made.append(target)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+", metavar="MODEL")
    parser.add_argument("--peer-python", action="append", help="an interpreter that has peers; may be given again")
    parser.add_argument("--peers", nargs="*", default=list(PEERS), help="of " + ", ".join(PEERS))
    parser.add_argument("--variants", nargs="*", default=[], help="of Q4_0 Q4_1 Q8_0 Q4_K")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--context", type=int, default=max(DECODE), help="leave out tasks with longer prompts")
    options = parser.parse_args()
    pythons = options.peer_python or [sys.executable]
    for model in [*options.models, *variants(options.models[0], options.variants, pythons)]:
        compare(model, options)


if __name__ == "__main__":
    main()
