"""The header of a safetensors file: parsed with every bound checked, weights never read.

    8 bytes   N, little-endian u64
    N bytes   JSON: {"name": {"dtype": "BF16", "shape": [out, in], "data_offsets": [begin, end]}, "__metadata__": {…}}
    rest      the data; offsets count from here, cover it exactly, in some order, without hole or overlap

A file comes from a stranger: every field is checked before it is used, and what is wrong is a CheckpointError.
Source: safetensors format description and its reference reader's rules (`validate`).
"""

from __future__ import annotations

import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datong.errors import CheckpointError
from datong.importer.digest import sha256
from datong.importer.show import show

MAX_HEADER = 100_000_000  # bytes; the format's own limit

# Bits of each element type that the format knows. More than dtypes.py: a file may hold types that no model here needs.
BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "I64": 64, "U64": 64, "F64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip

_DAMAGED = "the file is damaged or not safetensors; download it again"


@dataclass(frozen=True)
class Entry:
    """One tensor of the file."""

    dtype: str  # as the file spells it, a key of BITS
    shape: tuple[int, ...]
    offset: int  # bytes from the start of the *file*
    length: int  # bytes


@dataclass(frozen=True)
class Header:
    """What a safetensors file says about itself; `tensors` is in data order."""

    tensors: dict[str, Entry]
    metadata: dict[str, str]
    data_start: int  # bytes from the start of the file
    file_size: int
    header_sha256: str  # of the first `data_start` bytes, hex


def read_header(path: Path) -> Header:
    """Parse the header of `path`; reads 8 + N bytes, whatever the size of the file.

    Raises:
        CheckpointError: the file is absent, unreadable, or breaks a rule of the format.
    """
    try:
        info = path.stat()
        if not stat.S_ISREG(info.st_mode):  # before open: opening a pipe would wait for a writer
            raise CheckpointError(path.name, "a regular file was wanted, this is something else")
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            prefix = file.read(8)
            length = _header_length(path.name, prefix, size)
            raw = file.read(length)
    except OSError as error:
        raise CheckpointError(path.name, f"the file cannot be read: {error.strerror or error}") from error
    return parse_header(path.name, prefix + raw, size)


def parse_header(where: str, head: bytes, file_size: int) -> Header:
    """Parse `head`, the first 8 + N bytes of a file of `file_size` bytes. `where` names the file in errors.

    Raises:
        CheckpointError: a rule of the format is broken.
    """
    length = _header_length(where, head[:8], file_size)
    if len(head) < 8 + length:
        raise CheckpointError(where, f"the header should have {length} bytes, {len(head) - 8} are there", _DAMAGED)
    start = 8 + length
    fields = _json_object(where, head[8:start])
    metadata = _metadata(where, fields.pop("__metadata__", {}))
    entries = sorted(
        ((name, _entry(where, name, value, start)) for name, value in fields.items()),
        key=lambda item: (item[1].offset, item[1].length, item[0]),
    )
    _check_cover(where, entries, start, file_size)
    return Header(dict(entries), metadata, start, file_size, sha256(head[:start]))


def _header_length(where: str, prefix: bytes, file_size: int) -> int:
    if len(prefix) < 8:
        raise CheckpointError(where, f"a safetensors file has at least 8 bytes, this one has {file_size}", _DAMAGED)
    length = int.from_bytes(prefix, "little")
    if length > MAX_HEADER:
        raise CheckpointError(where, f"the header may have {MAX_HEADER} bytes, it claims {length}", _DAMAGED)
    if 8 + length > file_size:
        raise CheckpointError(where, f"the header should have {length} bytes, the file has {file_size}", _DAMAGED)
    return length


def _json_object(where: str, raw: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        fields = dict(pairs)
        if len(fields) != len(pairs):
            raise ValueError("a name occurs twice")
        return fields

    def constant(text: str) -> Any:
        raise ValueError(f"{show(text)} is not JSON")

    try:
        fields = json.loads(raw.decode("utf-8"), object_pairs_hook=unique, parse_constant=constant)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise CheckpointError(where, f"the header should be a JSON object: {reason}", _DAMAGED) from error
    if not isinstance(fields, dict):
        raise CheckpointError(where, f"the header should be a JSON object, it is {type(fields).__name__}", _DAMAGED)
    return fields


def _metadata(where: str, value: Any) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
        raise CheckpointError(where, "`__metadata__` should map strings to strings", _DAMAGED)
    return value


def _entry(where: str, name: str, value: Any, data_start: int) -> Entry:
    def wrong(what: str) -> CheckpointError:
        return CheckpointError(where, f"tensor {show(name)}: {what}", _DAMAGED)

    if not name.isprintable() or not name or len(name) > 4096:
        raise wrong("a name has 1 to 4096 printable characters")
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise wrong("`dtype`, `shape` and `data_offsets` are wanted, and nothing else")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise wrong(f"dtype {show(dtype)} is not one that safetensors has")
    if not _naturals(shape):
        raise wrong(f"shape should be a list of whole numbers from 0 to 2^63 - 1, it is {show(shape)}")
    if not _naturals(offsets) or len(offsets) != 2:
        raise wrong(f"data_offsets should be two whole numbers, they are {show(offsets)}")
    begin, end = offsets
    bits = BITS[dtype]
    for dim in shape:
        bits *= dim
        if bits >= 2**66:  # 2^63 bytes; checked on the way, so that 10,000 dimensions cost nothing
            raise wrong(f"shape {show(shape)} has more elements than memory can have")
    if bits % 8:
        raise wrong(f"{dtype} {show(shape)} does not end on a whole byte")
    if end - begin != bits // 8:
        raise wrong(f"{dtype} {show(shape)} takes {bits // 8} bytes, data_offsets [{begin}, {end}] give {end - begin}")
    return Entry(dtype, tuple(shape), data_start + begin, end - begin)


def _naturals(value: Any) -> bool:
    """Is this a list of ints in [0, 2^63)? `type`, because True is an int to isinstance."""
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**63 for n in value)


def _check_cover(where: str, entries: list[tuple[str, Entry]], data_start: int, file_size: int) -> None:
    """The tensors, in order, must tile the data: no hole, no overlap, no end beyond the file, no rest."""
    position, before = data_start, "the header"
    for name, entry in entries:
        if entry.offset != position:
            fault = "overlaps" if entry.offset < position else "leaves a hole after"
            raise CheckpointError(
                where, f"tensor {show(name)} starts at byte {entry.offset} and {fault} {show(before)}", _DAMAGED
            )
        position, before = entry.offset + entry.length, name
        if position > file_size:
            raise CheckpointError(
                where,
                f"tensor {show(name)} ends at byte {position}, the file has only {file_size}",
                "the file is cut off; download it again",
            )
    if position != file_size:
        raise CheckpointError(where, f"{file_size - position} bytes after the last tensor belong to none", _DAMAGED)
