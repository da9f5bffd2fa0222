"""A GGUF file, version 2 or 3, opened by mmap: metadata, and where each tensor lies. Nothing is read ahead.

    magic "GGUF" · version u32 · tensors u64 · keys u64
    keys    × (key string · type u32 · value)
    tensors × (name string · dims u32 · dim u64 … · type u32 · offset u64)
    padding to the alignment · tensor data; offsets count from here

The file is a stranger's: every count, length, offset and shape is checked against the size of the file before it is
used, and every failure is a CheckpointError that names the byte or the key. Dims lie innermost first in the file;
here shapes are in NumPy order, `[out, in]`.
Source: ggml docs/gguf.md.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from datong.errors import CheckpointError
from datong.importer.gguf.types import BY_ID, GgufType
from datong.importer.gguf.values import MAX_KEY, Cursor, Value

MAGIC = b"GGUF"
MAX_NAME = 256  # bytes; the format says 64, some writers exceed it
MAX_DIMS = 4
MAX_ALIGNMENT = 1 << 20
DEFAULT_ALIGNMENT = 32
MIN_KEY_BYTES = 8 + 4 + 1  # of one key-value pair: key length, type, a one-byte value
MIN_TENSOR_BYTES = 8 + 4 + 8 + 4 + 8  # of one tensor entry with one dim


@dataclass(frozen=True)
class GgufTensor:
    """One tensor: `shape` in NumPy order, `offset` from the start of the file."""

    name: str
    type: GgufType
    shape: tuple[int, ...]
    offset: int
    length: int


@dataclass
class GgufFile:
    """An open GGUF file; the mapping lives as long as someone holds this object."""

    path: Path
    version: int
    data: mmap.mmap
    values: dict[str, Value] = field(default_factory=dict)
    tensors: dict[str, GgufTensor] = field(default_factory=dict)
    alignment: int = DEFAULT_ALIGNMENT


def read_gguf(path: Path) -> GgufFile:
    """Open and check `path`. Raises CheckpointError with the byte where the file stops making sense."""
    where = path.name
    data = _map(path)
    if data[:4] != MAGIC:
        raise CheckpointError(
            where, f"byte 0: a GGUF file begins with `GGUF`, this one with {data[:4]!r}", "is this the right file?"
        )
    cursor = Cursor(data, where)
    cursor.at = 4
    version = cursor.u32("the version")
    if version not in (2, 3):
        big = version & 0xFFFF == 0
        raise CheckpointError(
            where,
            "byte 4: the file is big-endian, only little-endian GGUF is read"
            if big
            else f"byte 4: GGUF version should be 2 or 3, it is {version}",
            "convert the model again with a current llama.cpp",
        )
    file = GgufFile(path, version, data)
    n_tensors = _count(cursor, "tensor", MIN_TENSOR_BYTES)
    n_keys = _count(cursor, "key", MIN_KEY_BYTES)
    for _ in range(n_keys):
        _read_key(cursor, file)
    file.alignment = _alignment(file, where)
    entries = [_read_entry(cursor) for _ in range(n_tensors)]
    start = -(-cursor.at // file.alignment) * file.alignment
    for tensor in _place(entries, start, file, where):
        if tensor.name in file.tensors:
            raise CheckpointError(where, f"tensor `{tensor.name}` is listed twice")
        file.tensors[tensor.name] = tensor
    _check_overlaps(file, where)
    return file


def _map(path: Path) -> mmap.mmap:
    try:
        with path.open("rb") as stream:
            return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    except ValueError:
        raise CheckpointError(path.name, "the file is empty") from None
    except OSError as error:
        raise CheckpointError(path.name, f"the file cannot be opened: {error.strerror}") from None


def _count(cursor: Cursor, what: str, least: int) -> int:
    begin = cursor.at
    count = cursor.u64(f"the {what} count")
    if count * least > cursor.end:
        cursor.at = begin
        raise cursor.fail(
            f"{what} count {count} cannot be: each takes at least {least} bytes and the file has {cursor.end}",
            "the file is damaged",
        )
    return count


def _read_key(cursor: Cursor, file: GgufFile) -> None:
    begin = cursor.at
    key = cursor.text("a key", MAX_KEY)
    if key in file.values:
        cursor.at = begin
        raise cursor.fail(f"key `{key}` is given twice")
    file.values[key] = cursor.value(cursor.u32(f"the type of `{key}`"), key)


def _alignment(file: GgufFile, where: str) -> int:
    value = file.values.get("general.alignment", DEFAULT_ALIGNMENT)
    if not isinstance(value, int) or not 1 <= value <= MAX_ALIGNMENT or value & (value - 1):
        raise CheckpointError(
            where, f"`general.alignment` should be a power of two up to {MAX_ALIGNMENT}, it is {value!r}"
        )
    return value


def _read_entry(cursor: Cursor) -> GgufTensor:
    """One tensor entry; its offset still counts from the start of the data."""
    name = cursor.text("a tensor name", MAX_NAME)
    n_dims = cursor.u32(f"the rank of tensor `{name}`")
    if not 1 <= n_dims <= MAX_DIMS:
        raise cursor.fail(f"tensor `{name}` should have 1 to {MAX_DIMS} dims, it has {n_dims}")
    dims = [cursor.u64(f"the dims of tensor `{name}`") for _ in range(n_dims)]
    kind = cursor.u32(f"the type of tensor `{name}`")
    offset = cursor.u64(f"the offset of tensor `{name}`")
    row = BY_ID.get(kind)
    if row is None:
        raise cursor.fail(f"tensor `{name}` has type number {kind}, which GGUF does not define")
    if min(dims) < 1:
        raise cursor.fail(f"tensor `{name}` has shape {dims[::-1]}: every dim should be at least 1")
    if dims[0] % row.block:
        raise cursor.fail(
            f"rows of tensor `{name}` ({row.name}) should be multiples of {row.block}, they are {dims[0]}"
        )
    return GgufTensor(name, row, tuple(dims[::-1]), offset, math.prod(dims) // row.block * row.nbytes)


def _place(entries: list[GgufTensor], start: int, file: GgufFile, where: str) -> Iterator[GgufTensor]:
    end = len(file.data)
    for entry in entries:
        if entry.offset % file.alignment:
            raise CheckpointError(
                where,
                f"tensor `{entry.name}` should begin at a multiple of {file.alignment}, its offset is {entry.offset}",
            )
        begin = start + entry.offset
        if begin + entry.length > end:
            raise CheckpointError(
                where,
                f"tensor `{entry.name}` lies at bytes {begin} to {begin + entry.length}, the file ends at {end}",
                "the file is damaged or was not downloaded completely",
            )
        yield GgufTensor(entry.name, entry.type, entry.shape, begin, entry.length)


def _check_overlaps(file: GgufFile, where: str) -> None:
    before: GgufTensor | None = None
    for tensor in sorted(file.tensors.values(), key=lambda t: t.offset):
        if before is not None and before.offset + before.length > tensor.offset:
            raise CheckpointError(
                where,
                f"tensors `{before.name}` and `{tensor.name}` overlap: the first ends at byte "
                f"{before.offset + before.length}, the second begins at {tensor.offset}",
            )
        before = tensor
