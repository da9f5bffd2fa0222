"""Fuzz the GGUF reader and importer: seeded mutations of a tiny model; all but an import or a DatongError is a bug.

Run as: python scripts/fuzz_gguf.py --seconds 60 [--seed 0]. Exit code 1 on a finding, which is left in a file. A case
that takes longer than 5 s or more than 3 GiB of address space is a finding too.
"""

import argparse
import random
import resource
import struct
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from datong.errors import DatongError
from datong.importer.gguf.importer import import_gguf
from datong.importer.gguf.reader import GgufFile, read_gguf
from datong.importer.gguf.types import ALL
from datong.importer.gguf.values import Strings

SLOW = 5.0  # seconds; an import of the seed takes 0.02
MEMORY = 3 << 30  # bytes of address space, libraries included
FULL = 8  # one in so many accepted files is imported whole
NUMBERS = (0, 1, 2, 3, 7, 8, 13, 31, 32, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**63, 2**64 - 1)
SHAPES = {
    "attn_norm.weight": (16,), "attn_q.weight": (16, 16), "attn_k.weight": (8, 16), "attn_v.weight": (8, 16),
    "attn_output.weight": (16, 16), "ffn_norm.weight": (16,), "ffn_gate.weight": (32, 16), "ffn_up.weight": (32, 16),
    "ffn_down.weight": (16, 32),
}  # fmt: skip
BYTES = [f"<0x{b:02X}>" for b in range(256)]
SENTENCEPIECE = (["<unk>", "<s>", "</s>", *BYTES, "▁", "a", "b", "▁a", "ab"], [2, 3, 3, *[6] * 256, *[1] * 5])


def text(value: str) -> bytes:
    """A length and its bytes."""
    return struct.pack("<Q", len(value.encode())) + value.encode()


def typed(value: object) -> bytes:
    """A type number and a value."""
    if isinstance(value, bool):
        return struct.pack("<IB", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, str):
        return struct.pack("<I", 8) + text(value)
    assert isinstance(value, list)
    if value and isinstance(value[0], str):
        return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(text, value))
    kind = "f" if value and isinstance(value[0], float) else "i"
    return struct.pack(f"<IIQ{len(value)}{kind}", 9, 6 if kind == "f" else 5, len(value), *value)


def keys(rng: random.Random) -> dict[str, object]:
    """The metadata of the tiny model, with a tokenizer of either kind."""
    size, tokenizer = len(SENTENCEPIECE[0]), {"model": "llama", "scores": [-float(i) for i in range(264)]}
    tokens, types = SENTENCEPIECE
    if rng.random() < 0.5:
        tokens = [chr(0x100 + i) for i in range(size - 1)]
        tokenizer = {
            "model": "gpt2",
            "pre": rng.choice(["gpt-2", "qwen2", "llama-bpe"]),
            "merges": [" ".join(tokens[:2])],
        }
        tokens, types = [*tokens, tokens[0] + tokens[1]], [1] * size
    tokenizer |= {"tokens": tokens, "token_type": types, "bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0}
    return {
        "general.architecture": "llama", "general.name": "tiny", "general.alignment": 32, "llama.block_count": 1,
        "llama.context_length": 64, "llama.embedding_length": 16, "llama.feed_forward_length": 32,
        "llama.attention.head_count": 2, "llama.attention.head_count_kv": 1, "llama.rope.freq_base": 1e4,
        "llama.attention.layer_norm_rms_epsilon": 1e-5, **{f"tokenizer.ggml.{k}": v for k, v in tokenizer.items()},
    }  # fmt: skip


def mutate_keys(rng: random.Random, values: dict[str, object]) -> None:
    """Drop, retype or renumber one key."""
    key = rng.choice(sorted(values))
    choice = rng.randrange(4)
    if choice == 0:
        del values[key]
    elif choice == 1:
        values[key] = rng.choice([True, 0, 2**32 - 1, float("nan"), float("-inf"), "", "x", [], [1], ["x"], [0.5]])
    elif choice == 2 and isinstance(values[key], list) and values[key]:
        row = list(values[key])
        row[rng.randrange(len(row))] = rng.choice(row)
        values[key] = row[: rng.randint(0, len(row))] if rng.random() < 0.5 else row
    else:
        values[rng.choice(["llama.expert_count", "llama.rope.scaling.type", "split.count", "llama.vocab_size"])] = 3


def sample(rng: random.Random) -> bytes:
    """One input: valid (rarely), wrong in a key, in a tensor entry, in a count, or in its bytes."""
    values = keys(rng)
    for _ in range(rng.choice((0, 0, 1, 2))):
        mutate_keys(rng, values)
    shapes = {f"blk.0.{n}": s for n, s in SHAPES.items()}
    shapes |= {"token_embd.weight": (264, 16), "output_norm.weight": (16,), "output.weight": (264, 16)}
    entries, place = [], 0
    for name, shape in shapes.items():
        dims, kind, offset, rank = list(shape[::-1]), 0, place, len(shape)
        place += -(-4 * shape[0] * (shape[1] if rank > 1 else 1) // 32) * 32
        if rng.random() < 0.02:
            dims[rng.randrange(rank)] = rng.choice(NUMBERS)
        if rng.random() < 0.02:
            kind = rng.choice([t.id for t in ALL] + [4, 99])
        if rng.random() < 0.02:
            offset = rng.choice((*NUMBERS, 64, 128))
        if rng.random() < 0.01:
            rank = rng.choice((0, 3, 5, 2**32 - 1))
        entries.append(text(name) + struct.pack(f"<I{len(dims)}QIQ", rank, *dims, kind, offset))
    counts = [len(entries), len(values)]
    if rng.random() < 0.05:
        counts[rng.randrange(2)] = rng.choice(NUMBERS)
    head = b"GGUF" + struct.pack("<IQQ", rng.choice((2, 3)), *counts)
    head += b"".join(text(k) + typed(v) for k, v in values.items()) + b"".join(entries)
    raw = bytearray(head + bytes(-len(head) % 32) + rng.randbytes(64) + bytes(max(0, place - 64)))
    if rng.random() < 0.5:
        mutate_bytes(rng, raw, len(head))
    return bytes(raw)


def mutate_bytes(rng: random.Random, raw: bytearray, head: int) -> None:
    """Overwrite, insert or cut; mostly in the header, often a whole number where one may be."""
    for _ in range(rng.randint(1, 4)):
        at, kind = rng.randrange(rng.choice((32, 400, head, len(raw)))), rng.randrange(5)
        if kind == 0:
            raw[at : at + 1] = bytes([rng.randrange(256)])
        elif kind == 1:
            raw[at : at + 8] = struct.pack("<Q", rng.choice(NUMBERS))
        elif kind == 2:
            raw[at : at + 4] = struct.pack("<I", rng.choice(NUMBERS) & 0xFFFFFFFF)
        elif kind == 3:
            del raw[at : at + rng.choice((1, 8, 100, len(raw)))]
        else:
            raw[at:at] = rng.randbytes(rng.choice((1, 4, 32)))
        if len(raw) < 32:
            return


def promise(file: GgufFile) -> str:
    """What every accepted file promises: tensors inside the file and apart. Reads all strings on the way."""
    for value in file.values.values():
        if isinstance(value, Strings):
            list(value)
    spans = sorted((t.offset, t.offset + t.length) for t in file.tensors.values())
    ends = [0, *(end for _, end in spans)]
    apart = all(begin >= end for (begin, _), end in zip(spans, ends, strict=False))
    return "" if apart and ends[-1] <= len(file.data) else "accepted, but tensors overlap or leave the file"


def attempt(path: Path, whole: bool) -> str:
    """Empty, or the fault. Raises DatongError where the file is refused."""
    fault = promise(read_gguf(path))
    if whole and not fault:
        for tensor in import_gguf(path).tensors:
            if sum(map(len, tensor.read())) != tensor.length:
                fault = f"tensor `{tensor.name}` has another length than announced"
    return fault


def main() -> int:
    """Run for the given time; print counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    rng, counts, end = random.Random(options.seed), Counter[str](), time.monotonic() + options.seconds
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.gguf"
        while time.monotonic() < end:
            raw, start = sample(rng), time.monotonic()
            path.write_bytes(raw)
            try:
                fault = attempt(path, whole=rng.randrange(FULL) == 0)
                counts["accepted"] += 1
            except DatongError as error:
                fault = "" if error.message and "\n" not in error.message else f"not one sentence: {error!r}"
                counts[f"refused: {type(error).__name__}"] += 1
            except Exception as error:
                fault = repr(error)
            path.unlink()
            if time.monotonic() - start > SLOW:
                fault = fault or f"took {time.monotonic() - start:.1f} s"
            if fault:
                Path("fuzz_gguf_finding.bin").write_bytes(raw)
                print(f"finding after {counts.total()} inputs, in fuzz_gguf_finding.bin: {fault}", file=sys.stderr)
                return 1
    print(f"fuzz_gguf: {counts.total()} inputs in {options.seconds:g} s, {dict(counts)}, nothing found")
    return 0


if __name__ == "__main__":
    sys.exit(main())
