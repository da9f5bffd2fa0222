"""Fuzz the safetensors header parser: seeded mutations of valid files; anything but a header or a DatongError is a bug.

Run as: python scripts/fuzz_safetensors.py --seconds 60 [--seed 0]. Exit code 1 on a finding, which is left in a file.
"""

import argparse
import json
import random
import struct
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from datong.errors import DatongError
from datong.importer.safetensors import BITS, Header, parse_header, read_header

NUMBERS = (0, 1, 7, 8, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, -1, 10**30, 1.5, True, None, "1", [], {})
TOKENS = (b'"', b"{", b"}", b"[", b"]", b",", b":", b"-", b"9" * 5000, b"\\ud800", b"NaN", b"\xff", b"\0", b"[" * 3000)


def valid(rng: random.Random) -> tuple[dict, int]:
    """A valid header and the size of its data in bytes."""
    header, position = {"__metadata__": {"format": "pt"}}, 0
    for i in range(rng.randint(0, 6)):
        dtype = rng.choice([t for t in BITS if BITS[t] >= 8])
        shape = [rng.randint(0, 5) for _ in range(rng.randint(0, 3))]
        size = BITS[dtype] // 8
        for dim in shape:
            size *= dim
        header[f"layer.{i}"] = {"dtype": dtype, "shape": shape, "data_offsets": [position, position + size]}
        position += size
    return header, position


def mutate_fields(rng: random.Random, header: dict) -> None:
    """Replace, remove or add one field of one entry."""
    entry = header[rng.choice(sorted(header))]
    key = rng.choice(["dtype", "shape", "data_offsets", "more"])
    junk = rng.choice(NUMBERS)
    if key in ("shape", "data_offsets") and isinstance(entry.get(key), list) and entry[key] and rng.random() < 0.8:
        entry[key][rng.randrange(len(entry[key]))] = junk
    elif rng.random() < 0.3:
        entry.pop(key, None)
    else:
        entry[key] = rng.choice([junk, *BITS])


def mutate_bytes(rng: random.Random, raw: bytearray) -> None:
    """Overwrite, insert or cut some bytes; most hit the header."""
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(max(1, rng.choice((8, min(len(raw), 300), len(raw)))))
        token, kind = rng.choice(TOKENS), rng.randrange(4)
        if kind == 0:
            raw[at : at + 1] = bytes([rng.randrange(256)])
        elif kind == 1:
            raw[at:at] = token
        elif kind == 2:
            raw[at : at + len(token)] = token
        else:
            del raw[at : at + rng.randint(1, 20)]


def sample(rng: random.Random) -> bytes:
    """One input: valid (rarely), wrong in a field, or wrong in its bytes."""
    header, size = valid(rng)
    if rng.random() < 0.5:
        mutate_fields(rng, header)
    text = json.dumps(header).encode()
    raw = bytearray(struct.pack("<Q", len(text)) + text + bytes(size))
    if rng.random() < 0.6:
        mutate_bytes(rng, raw)
    return bytes(raw)


def holds(header: Header) -> bool:
    """What every accepted header promises: tensors tile the data."""
    ends = sorted((e.offset, e.offset + e.length) for e in header.tensors.values())
    starts = [header.data_start, *(end for _, end in ends)]
    return [start for start, _ in ends] == starts[:-1] and starts[-1] == header.file_size


def main() -> int:
    """Run for the given time; print counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng, counts, end = random.Random(options.seed), Counter[str](), time.monotonic() + options.seconds
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        while time.monotonic() < end:
            raw = sample(rng)
            try:
                if counts.total() % 50:
                    header = parse_header(path.name, raw, len(raw))
                else:  # the same through a file, which is ten times slower
                    path.write_bytes(raw)
                    header = read_header(path)
                fault = "" if holds(header) else "accepted, but the tensors do not tile the data"
                counts["accepted"] += 1
            except DatongError as error:
                fault = "" if str(error) and "\n" not in error.message else f"not one sentence: {error!r}"
                counts["refused"] += 1
            except Exception as error:
                fault = repr(error)
            if fault:
                Path("fuzz_safetensors_finding.bin").write_bytes(raw)
                print(
                    f"finding after {counts.total()} inputs, in fuzz_safetensors_finding.bin: {fault}", file=sys.stderr
                )
                return 1
    print(f"fuzz_safetensors: {counts.total()} inputs in {options.seconds:g} s, {dict(counts)}, nothing found")
    return 0


if __name__ == "__main__":
    sys.exit(main())
