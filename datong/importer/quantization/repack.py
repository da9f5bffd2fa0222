"""Weights that a method stores in another order: moved, value by value, into tensors that the package writes.

A package has its weights in one place: where one tensor moves, all others are copied beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datong.importer import files, layout
from datong.importer.checkpoint import SINGLE
from datong.importer.imported import PendingTensor
from datong.importer.weights import StoredTensor, Weight, WeightMap
from datong.spec.formats import Format

CHUNK = 1 << 24  # bytes of a plain tensor that are copied at once
Make = Callable[[], Iterator[bytes]]


def mapped(root: Path, stored: StoredTensor) -> NDArray[np.generic]:
    """A tensor of the checkpoint over the mapped file, in its stored shape."""
    path = files.contained(root, stored.file)
    raw = np.memmap(path, np.uint8, "r", stored.offset, (stored.length,))
    return np.asarray(raw).view(stored.dtype.numpy).reshape(stored.shape)


class Repack:
    """What moves, and how its bytes are made."""

    def __init__(self, weights: WeightMap, root: Path) -> None:
        self._weights, self._root = weights, root
        self._moved: dict[str, tuple[Format, tuple[int, ...], dict[str, Make]]] = {}

    def add(self, name: str, form: Format, shape: tuple[int, ...], made: dict[str, Make], *used: str) -> None:
        """The weight `name` `[out, in]`, its pieces made when written, instead of the tensors `used`."""
        self._moved[name] = (form, shape, made)
        for old in used:
            for table in (self._weights.weights, self._weights.unusable, self._weights.others):
                table.pop(old, None)

    def finish(self) -> tuple[PendingTensor, ...]:
        """Everything at its new place in the map; the tensors to write, in file order."""
        pending: list[PendingTensor] = []
        for name, weight in self._weights.weights.items():
            for role, stored in weight.pieces.items():
                pending.append(self._copy(_called(name, role), stored))
        for name, (form, shape, made) in self._moved.items():
            for role, make in made.items():
                dtype, dims = form.piece_dtype(role), form.piece_shape(role, *shape)
                packed = (*dims[:-1], dims[-1] * dtype.bits // 8) if dtype.bits < 8 else dims
                pending.append(PendingTensor(_called(name, role), dtype, packed, dtype.nbytes(math.prod(dims)), make))
        ordered = layout.file_order(pending)
        places = layout.offsets(ordered)
        for name, weight in list(self._weights.weights.items()):
            pieces = {
                role: replace(s, name=_called(name, role), file=SINGLE, offset=places[_called(name, role)])
                for role, s in weight.pieces.items()
            }
            self._weights.weights[name] = replace(weight, pieces=pieces)
        for name, (form, shape, made) in self._moved.items():
            pieces = {}
            for role in made:
                full, dtype, dims = _called(name, role), form.piece_dtype(role), form.piece_shape(role, *shape)
                pieces[role] = StoredTensor(full, dtype, dims, SINGLE, places[full], dtype.nbytes(math.prod(dims)))
            self._weights.weights[name] = Weight(name, form, shape, pieces)
        return tuple(ordered)

    def _copy(self, name: str, stored: StoredTensor) -> PendingTensor:
        def read() -> Iterator[bytes]:
            raw = mapped(self._root, stored).reshape(-1).view(np.uint8)
            return (raw[at : at + CHUNK].tobytes() for at in range(0, len(raw), CHUNK))

        return PendingTensor(name, stored.dtype, stored.shape, stored.length, read)


def _called(weight: str, role: str) -> str:
    return weight if role == "codes" else f"{weight}.{role}"
