"""One layer of a flagship at its real shape on the CPU: time of prefill and decode, against what memory allows.

    python bench/layer_cost.py [step3p5 minimax_m2] --work DIR [--format fp8_128] [--csv results/layer_cost.csv]

The layer is built by the family's own importer from the published config, with random weights in q4_0, or
another format (norms and router in f32), between an embedding and a head of 1,024 tokens. Experts are tensors of their
own, also where the published file stacks them.

limit   half a gigabyte of memory read by the same number of threads as fast as they can (limits.cpp), before each run
share   bytes that the steps need (weights used by any token of a step, each once a step) / time / limit, by medians.
        A prompt gives an expert a dozen tokens: there the arithmetic is the limit, not the memory
read    experts whose pages a process has mapped after one step, from a fresh start; pages around a touched one are
        mapped by the kernel too (64 KiB), so an expert counts from half of its pages on

2.6 GB of disk and page cache a model. Linux only (/proc/self/pagemap).
"""

import argparse
import csv
import json
import math
import mmap
import os
import platform
import statistics
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import limits
import numpy as np

from datong.engine.load import load
from datong.importer import layout
from datong.importer.config import Config
from datong.importer.imported import Imported, PendingTensor
from datong.importer.models.layers import build
from datong.importer.registry import FAMILIES
from datong.importer.weights import StoredTensor, Weight, WeightMap
from datong.package.reader import open_package
from datong.package.writer import WEIGHTS, write_directory
from datong.spec.formats import BY_NAME, PLAIN_F32, Q8_0, Format

VOCAB = 1024
PREFILL, DECODE, CONTEXT, RUNS = 512, 48, 512, 5
PAGE = mmap.PAGESIZE

# Published values; `num_hidden_layers` 1 and the small vocabulary apart. Step-3.5-Flash: one of its 33 sliding layers.
CONFIGS = {
    "step3p5": {
        "model_type": "step3p5",
        "hidden_size": 4096,
        "intermediate_size": 11264,
        "num_hidden_layers": 1,
        "vocab_size": VOCAB,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "max_position_embeddings": 262144,
        "head_dim": 128,
        "num_attention_heads": 64,
        "num_attention_groups": 8,
        "layer_types": ["sliding_attention"],
        "sliding_window": 512,
        "attention_other_setting": {
            "attention_type": "sliding_attention",
            "num_attention_heads": 96,
            "num_attention_groups": 8,
            "head_dim": 128,
        },
        "rope_theta": [10000.0],
        "partial_rotary_factors": [1.0],
        "moe_layers_enum": "0",
        "moe_num_experts": 288,
        "moe_top_k": 8,
        "moe_intermediate_size": 1280,
        "share_expert_dim": 1280,
        "norm_expert_weight": True,
        "moe_router_scaling_factor": 3.0,
        "moe_router_activation": "sigmoid",
        "need_fp32_gate": True,
        "use_head_wise_attn_gate": True,
        "use_moe": True,
        "use_moe_router_bias": True,
        "use_qk_norm": True,
        "zero_centered": True,
        "att_impl_type": "GQA",
    },
    "minimax_m2": {
        "model_type": "minimax_m2",
        "hidden_size": 3072,
        "intermediate_size": 1536,
        "num_hidden_layers": 1,
        "vocab_size": VOCAB,
        "num_attention_heads": 48,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "rotary_dim": 64,
        "rope_theta": 5e6,
        "max_position_embeddings": 196608,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "attn_type_list": [1],
        "num_local_experts": 256,
        "num_experts_per_tok": 8,
        "scoring_func": "sigmoid",
        "use_qk_norm": True,
        "qk_norm_type": "per_layer",
        "use_routing_bias": True,
        "shared_intermediate_size": 0,
        "hidden_act": "silu",
    },
}


# ---- the package ----------------------------------------------------------------------------------------------------


@dataclass
class Wanted(WeightMap):
    """Says yes to every weight, and remembers which were asked for."""

    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def take(self, name: str, shape: tuple[int, ...]) -> Weight:
        self.shapes[name] = shape
        stored = StoredTensor(name, PLAIN_F32.codes, shape, WEIGHTS, 0, 4 * math.prod(shape))
        return Weight(name, PLAIN_F32, shape, {"codes": stored})


DEVIATION = {"i4": 4.6, "i8": 74.0, "f8e4m3": 0.6}  # of random codes, as `contents` makes them


def format_of(name: str, shape: tuple[int, ...], form: Format) -> Format:
    if len(shape) < 2 or name.endswith(("moe.gate.weight", "block_sparse_moe.gate.weight", "g_proj.weight")):
        return PLAIN_F32
    return Q8_0 if "embed" in name or "lm_head" in name else form


def contents(name: str, role: str, shape: tuple[int, ...], form: Format, norm: float) -> Iterator[bytes]:
    """Random codes, one scale (weights of deviation 1 / sqrt(in), embedding 1); norms `norm`, biases 0."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    width = shape[-1] if form is PLAIN_F32 else shape[1] * form.block
    if role == "scale":
        deviation = 1.0 if "embed" in name else 1 / math.sqrt(width)
        yield np.full(shape, deviation / DEVIATION[form.codes.name], form.piece_dtype(role).numpy).tobytes()
    elif form.codes.name == "f8e4m3":
        yield (np.frombuffer(rng.bytes(math.prod(shape)), np.uint8) & 0xBF).tobytes()  # below 2: no NaN
    elif form is not PLAIN_F32:
        yield rng.bytes(form.codes.nbytes(math.prod(shape)))
    elif len(shape) == 2:
        yield (rng.standard_normal(shape, np.float32) / math.sqrt(width)).tobytes()
    else:
        yield np.full(shape, 0 if "bias" in name else norm, np.float32).tobytes()


def make(config: dict, target: Path, form: Format) -> Path:
    """Write the package, unless it is there."""
    if (target / "datong.json").exists():
        return target
    family = config["model_type"]
    decoder = FAMILIES[family](Config(config, family))
    if family == "step3p5":  # a tensor for each expert
        experts = {part: f"moe.experts.{{}}.{part}_proj.weight" for part in ("gate", "up", "down")}
        decoder = replace(
            decoder, layers=tuple(replace(x, experts=replace(x.experts, **experts)) for x in decoder.layers)
        )
    wanted = Wanted({})
    build(family, Config(config, family), decoder, wanted)
    pending, formats = [], {name: format_of(name, shape, form) for name, shape in wanted.shapes.items()}
    for name, shape in wanted.shapes.items():
        form = formats[name]
        for role in form.pieces:
            values = form.piece_shape(role, *shape) if form.block else shape
            dtype, full = form.piece_dtype(role), name if role == "codes" else f"{name}.{role}"
            stored = (*values[:-1], values[-1] // 2) if dtype.bits == 4 else values

            def read(n=name, r=role, v=values, f=form) -> Iterator[bytes]:
                return contents(n, r, v, f, 1 - decoder.norm_offset)

            pending.append(PendingTensor(full, dtype, stored, dtype.nbytes(math.prod(values)), read))
    pending = layout.file_order(pending)
    places, lengths = layout.offsets(pending), {p.name: p.length for p in pending}
    weights = {}
    for name, shape in wanted.shapes.items():
        form, pieces = formats[name], {}
        for role in form.pieces:
            full = name if role == "codes" else f"{name}.{role}"
            values = form.piece_shape(role, *shape) if form.block else shape
            pieces[role] = StoredTensor(full, form.piece_dtype(role), values, WEIGHTS, places[full], lengths[full])
        weights[name] = Weight(name, form, shape, pieces)
    found = WeightMap(weights)
    built = build(family, Config(config, family), decoder, found)
    imported = Imported(
        model=built.model, family=family, name=f"{family}, one layer", source="random", licence=None, config=config,
        weights=found, caches=built.caches, vocab_size=VOCAB, context_length=built.context_length,
        tensors=tuple(pending),
    )  # fmt: skip
    return write_directory(imported, target)


# ---- what was read --------------------------------------------------------------------------------------------------


def places(root: Path) -> tuple[dict[str, list[tuple[int, int]]], dict[str, int]]:
    """Expert -> its (offset, length) in the weight file; and the bytes of everything that every token needs."""
    experts: dict[str, list[tuple[int, int]]] = {}
    always = {}
    for name, (_, entry) in open_package(root).tensors.items():
        if ".experts." in name:
            experts.setdefault(name.split(".experts.")[1].split(".")[0], []).append((entry.offset, entry.length))
        elif "embed" not in name:  # of which a token reads one row
            always[name] = entry.length
    return experts, always


def resident(root: Path) -> np.ndarray:
    """Which pages of the weight file this process has mapped: [pages] bool."""
    size = -(-(root / WEIGHTS).stat().st_size // PAGE)
    found = np.zeros(size, bool)
    with open("/proc/self/maps") as maps, open("/proc/self/pagemap", "rb") as pagemap:
        for line in maps:
            fields = line.split(maxsplit=5)
            if len(fields) < 6 or not fields[5].rstrip().endswith(str(root / WEIGHTS)):
                continue
            start, end = (int(part, 16) for part in fields[0].split("-"))
            pagemap.seek(start // PAGE * 8)
            entries = np.frombuffer(pagemap.read((end - start) // PAGE * 8), np.uint64)
            first = int(fields[2], 16) // PAGE
            found[first : first + len(entries)] |= (entries >> np.uint64(63)).astype(bool)[: size - first]
    return found


def experts_read(root: Path, ids: list[int]) -> list[int]:
    """After a prompt, in this process: how many pages of each expert are mapped, in percent, largest first."""
    model = load(open_package(root), threads=1, context=PREFILL, step_tokens=len(ids), step_rows=len(ids))
    model.logits(ids)
    pages, experts = resident(root), places(root)[0]
    shares = []
    for ranges in experts.values():
        inside = [pages[offset // PAGE : -(-(offset + length) // PAGE)] for offset, length in ranges]
        shares.append(round(100 * float(np.concatenate(inside).mean())))
    return sorted(shares, reverse=True)


# ---- times ----------------------------------------------------------------------------------------------------------


def bandwidth(threads: int) -> float:
    """Bytes per second of reading half a gigabyte of memory (limits.cpp), measured now."""
    return limits.measure(threads, 512).stream_gb_s * 1e9


def measure(family: str, root: Path, threads: int) -> list[dict]:
    """Rows of one layer: a prompt in steps of 128 and of 512 tokens, with logits of all of them, and decode."""
    experts, always = places(root)
    one = sum(length for _, length in next(iter(experts.values())))
    fixed = sum(always.values())
    print(f"{family}: expert {one / 1e6:.2f} MB, always {fixed / 1e6:.1f} MB", flush=True)
    rows = []
    for task, step in (("prefill", 128), ("prefill", 512), ("decode", 1)):
        times, bounds = decode_times(root, threads) if step == 1 else prefill_times(root, threads, step)
        limit = statistics.median(bounds)
        shares = pages(root, step)
        read = [share for share in shares if share >= 50]
        steps = PREFILL // step if step > 1 else 1
        need, seconds = steps * (fixed + len(read) * one), statistics.median(times)
        rows.append({
            "layer": family, "task": task, "tokens": steps * step, "step": step, "threads": threads,
            "ms median": f"{1000 * seconds:.2f}", "ms least": f"{1000 * min(times):.2f}",
            "ms most": f"{1000 * max(times):.2f}", "tokens/s": f"{steps * step / seconds:.1f}",
            "experts": len(shares), "read in a step": len(read), "least of these %": min(read),
            "most of the others %": max((share for share in shares if share < 50), default=""),
            "bytes needed": need, "GB/s": f"{need / seconds / 1e9:.2f}", "limit GB/s": f"{limit / 1e9:.2f}",
            "share": f"{need / seconds / limit:.2f}",
        })  # fmt: skip
        print(*(f"{key} {value}" for key, value in rows[-1].items()), sep=" | ", flush=True)
    return rows


def prompt(run: int, count: int) -> list[int]:
    return [(i * 7919 + 131 * run) % VOCAB for i in range(count)]


def prefill_times(root: Path, threads: int, step: int) -> tuple[list[float], list[float]]:
    """Seconds, and the limit before each. All logits: for the last one alone, the others would pass no experts here."""
    model = load(open_package(root), threads=threads, context=PREFILL, step_tokens=step, step_rows=step)
    found, bounds = [], []
    for run in range(RUNS + 1):
        bounds.append(bandwidth(threads))
        start = time.perf_counter()
        model.logits(prompt(run, PREFILL))
        found.append(time.perf_counter() - start)
    return found[1:], bounds[1:]


def decode_times(root: Path, threads: int) -> tuple[list[float], list[float]]:
    """Seconds a token after 512, and the limit before each run."""
    model = load(open_package(root), threads=threads, context=CONTEXT + DECODE + 1)
    found, bounds = [], []
    for run in range(RUNS + 1):
        bounds.append(bandwidth(threads))
        timings = model.generate(prompt(run, CONTEXT), max_tokens=DECODE, ignore_eos=True).timings
        found.append(timings.decode_seconds / timings.decode_tokens)
    return found[1:], bounds[1:]


def pages(root: Path, count: int) -> list[int]:
    """`experts_read` of a prompt of `count` tokens, in a process of its own."""
    command = [sys.executable, __file__, "--pages", str(root), str(count)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    if sys.argv[1:2] == ["--pages"]:
        print(json.dumps(experts_read(Path(sys.argv[2]), prompt(0, int(sys.argv[3])))))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", default=list(CONFIGS), metavar="FAMILY", help=", ".join(CONFIGS))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--format", choices=("q4_0", "fp8_128"), default="q4_0")
    parser.add_argument("--csv", type=Path)
    given = parser.parse_args()
    rows, form = [], BY_NAME[given.format]
    for family in given.families:
        rows += measure(family, make(CONFIGS[family], given.work / f"{family}-{given.format}", form), given.threads)
    if given.csv:
        write(given.csv, rows, given.format)


def write(path: Path, rows: list[dict], form: str) -> None:
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True).stdout.strip()
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        where = f"{processor()}, {len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}"
        command = f"python bench/layer_cost.py --format {form} | random weights in {form}, router in f32"
        writer.writerow([f"# {where} | commit {commit} | {command}"])
        writer.writerow(rows[0])
        writer.writerows(row.values() for row in rows)


def processor() -> str:
    """As the kernel names it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return platform.machine()


if __name__ == "__main__":
    main()
