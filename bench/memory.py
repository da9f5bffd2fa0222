"""Where the memory of a run goes: resident and peak after each stage, against the weights plus the cache.

    python bench/memory.py MODEL [--context 8192] [--threads 2] [--step-tokens N] [--csv results/memory-NAME.csv]

The context is filled: a prompt of all but 16 tokens, then 16 decoded, so every byte of the cache has been touched. The
prompt is a text where the package has a tokenizer, as a user's would be. Linux only (/proc/self/smaps).
"""

import re
import sys
from collections import Counter
from pathlib import Path

ROWS: list[list[str]] = []
MIB = 1 << 20
GROUPS = (
    (r"safetensors|\.gguf|\.packed", "weights, mapped"),
    (r"libdatong|_native", "datong's libraries"),
    (r"numpy|openblas|gfortran|quadmath", "numpy's libraries"),
    (r"tokenizers", "tokenizers' library"),
    (r"\.so|python", "other libraries"),
    (r"heap", "heap"),
    (r"stack|vdso|vvar", "stack"),
)


def status(key: str) -> float:
    text = Path("/proc/self/status").read_text()
    return int(re.search(rf"{key}:\s+(\d+)", text)[1]) / 1024


def stage(what: str) -> None:
    row = [what, f"{status('VmRSS'):.1f}", f"{status('VmHWM'):.1f}"]
    ROWS.append(row)
    print(f"{row[0]:<44}{row[1]:>9} resident{row[2]:>9} peak", flush=True)


def breakdown() -> Counter:
    """Resident MiB by kind of mapping."""
    found: Counter = Counter()
    name = ""
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            fields = line.split(maxsplit=5)
            name = fields[5] if len(fields) > 5 else ""
        elif line.startswith("Rss:") and (size := int(line.split()[1])):
            kind = next((label for pattern, label in GROUPS if re.search(pattern, name)), "anonymous")
            found[kind] += size / 1024
    return found


def main() -> None:
    stage("python")  # and what this script itself needs: no argparse, which would be counted
    given = dict(zip(sys.argv[2::2], sys.argv[3::2], strict=True))
    if len(sys.argv) < 2 or set(given) - {"--context", "--threads", "--step-tokens", "--csv"}:
        sys.exit(__doc__)
    import numpy  # noqa: F401

    stage("numpy")
    from datong.engine.load import load
    from datong.package.store import resolve

    stage("datong.engine.load imported")
    package = resolve(sys.argv[1])
    context = int(given.get("--context", package.manifest.context_length))
    extra = {"step_tokens": int(given["--step-tokens"])} if "--step-tokens" in given else {}
    model = load(package, threads=int(given.get("--threads", 2)), context=context, **extra)
    stage("loaded")
    if model.package.tokenizer_file is not None:
        model.encode("Hello")
        stage("tokenizer")
    ids = [(i * 7919 + 13) % (model.vocab_size - 100) + 50 for i in range(context - 16)]
    model.generate(ids[:8], max_tokens=4, ignore_eos=True)
    stage("short prompt, 4 tokens")
    model.generate(ids, max_tokens=16, ignore_eos=True)
    stage(f"context of {context} full")
    memory = model.memory()
    floor = (memory["weights_mapped"] + memory["weights_private"] + memory["cache"]) / MIB
    peak = status("VmHWM")
    print({name: f"{size / MIB:.1f} MiB" for name, size in memory.items()})
    print({name: f"{size:.1f}" for name, size in breakdown().most_common()})
    print(
        f"peak {peak:.1f} MiB = {peak / floor:.3f} x (weights + cache = {floor:.1f} MiB), {peak - floor:.1f} MiB more"
    )
    if "--csv" in given:
        write(Path(given["--csv"]), context, floor, peak)


def write(path: Path, context: int, floor: float, peak: float) -> None:
    import csv
    import os
    import subprocess

    model = Path(sys.argv[1]).name
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True).stdout.strip()
    found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    cpu = found[1] if found else "unknown processor"
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([
            f"# {cpu}, {len(os.sched_getaffinity(0))} cores | {model} | commit {commit}"
            f" | python bench/memory.py {model} --context {context}"
        ])  # fmt: skip
        writer.writerow(["after", "resident MiB", "peak MiB"])
        writer.writerows(
            [*ROWS, ["weights + cache", f"{floor:.1f}", ""], ["peak / (weights + cache)", "", f"{peak / floor:.3f}"]]
        )


if __name__ == "__main__":
    main()
