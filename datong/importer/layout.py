"""Where each tensor of a `model.safetensors` that we write will lie: known before any byte of it is.

The importer puts these offsets into the graph, the package writer puts the same header into the file. The format
allows no holes between tensors, so alignment comes from order: first the tensors whose length is a multiple of
ALIGN, as given; then the others, wide elements first, so that each begins at a multiple of its element size.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Protocol, TypeVar

from datong.dtypes import DType
from datong.errors import CheckpointError

ALIGN = 64  # one cache line, and the widest vector load


class Laid(Protocol):
    """What the layout needs to know of a tensor (PendingTensor has it)."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def dtype(self) -> DType: ...  # noqa: D102
    @property
    def shape(self) -> tuple[int, ...]: ...  # noqa: D102
    @property
    def length(self) -> int: ...  # noqa: D102


T = TypeVar("T", bound=Laid)


def file_order(tensors: Sequence[T]) -> list[T]:
    """The tensors in the order in which they are to be written."""
    aligned = [t for t in tensors if t.length % ALIGN == 0]
    rest = [t for t in tensors if t.length % ALIGN]
    return aligned + sorted(rest, key=lambda t: -t.dtype.numpy.itemsize)


def header(tensors: Sequence[Laid]) -> bytes:
    """The bytes before the data: length (u64), JSON, spaces up to a multiple of ALIGN. Same tensors, same bytes."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for tensor in tensors:
        if tensor.name in entries:
            raise CheckpointError("import", f"tensor `{tensor.name}` would be written twice")
        end = start + tensor.length
        entries[tensor.name] = {
            "dtype": tensor.dtype.safetensors,
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGN)
    return len(text).to_bytes(8, "little") + text


def offsets(tensors: Sequence[Laid]) -> dict[str, int]:
    """From name to offset in the file, in bytes, for tensors in file order."""
    place, result = len(header(tensors)), {}
    for tensor in tensors:
        result[tensor.name] = place
        place += tensor.length
    return result
