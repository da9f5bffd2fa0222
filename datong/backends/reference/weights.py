"""Weights of the reference backend: mapped from the package, dequantised when used.

Nothing is copied at load. A matrix is dequantised on each use, and kept only while the kept ones fit `keep_bytes`: f32
copies of a large 4-bit model would be eight times its file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datong import dtypes
from datong.errors import DeviceError
from datong.spec import formats
from datong.spec.formats import Format
from datong.spec.program import Piece, Value, expert
from datong.spec.reference import dequantise
from datong.spec.reference_formats import select

Array = NDArray[Any]


class Weights:
    """The weights of one part, by value name."""

    def __init__(self, package: str, values: Mapping[str, Value], keep_bytes: int) -> None:
        self._files: dict[str, Array] = {}
        self._root = Path(package)
        self._kept: dict[str, Array] = {}
        self._keep_bytes = keep_bytes
        self.private_bytes = 0  # of dequantised copies that are kept
        self._pieces: dict[str, dict[str, Array]] = {}
        self._values: dict[str, Value] = {}
        self._stacks: dict[str, list[str]] = {}
        self.mapped_bytes = 0
        for name, value in values.items():
            if value.kind == "weight" and len(value.shape) == 3:
                experts = [expert(value, index) for index in range(int(value.shape[0]))]
                self._stacks[name] = [self._add(one) for one in experts]
            elif value.kind == "weight":
                self._add(value)

    def _add(self, value: Value) -> str:
        self._values[value.name] = value
        self._pieces[value.name] = {piece.role: self._map(piece) for piece in value.pieces}
        self.mapped_bytes += sum(p.nbytes for p in self._pieces[value.name].values())
        return value.name

    def _map(self, piece: Piece) -> Array:
        """One piece as an array over the mapped file, 4-bit types as bytes with half the last dim."""
        if piece.file not in self._files:
            try:
                self._files[piece.file] = np.memmap(self._root / piece.file, mode="r", dtype=np.uint8)
            except (OSError, ValueError) as error:
                raise DeviceError("reference", f"weight file `{piece.file}` should open, got: {error}") from error
        data, dtype = self._files[piece.file], dtypes.BY_NAME[piece.dtype]
        if piece.offset + piece.length > len(data):
            raise DeviceError(
                "reference",
                f"`{piece.file}` should hold {piece.length} bytes at {piece.offset}, it has {len(data)} bytes",
                "the file changed or was cut; run `datong verify`",
            )
        per_byte = 8 // dtype.bits if dtype.bits < 8 else 1
        shape = (*piece.shape[:-1], piece.shape[-1] // per_byte)
        return np.asarray(data[piece.offset : piece.offset + piece.length]).view(dtype.numpy).reshape(shape)

    def rows(self, name: str, rows: Array | slice) -> Array:
        """Some rows of a matrix, or experts of a stack, dequantised: rows [R] i64, or a range -> [R, …] f32, a copy."""
        if name in self._stacks:
            return np.stack([self.whole(one) for one in np.array(self._stacks[name])[rows].tolist()])
        if self._values[name].swapped:
            return np.array(self.whole(name)[rows])
        return dequantise(self._format(name), select(self._format(name), self._pieces[name], rows))

    def whole(self, name: str) -> Array:
        """A weight, dequantised: its logical shape, f32. A view of the file where it is stored as f32."""
        if name in self._kept:
            return self._kept[name]
        pieces, swapped = self._pieces[name], self._values[name].swapped
        if self._format(name) is formats.PLAIN_F32:
            return np.swapaxes(pieces["codes"], -1, -2) if swapped else pieces["codes"]
        array = dequantise(self._format(name), pieces)
        array = np.swapaxes(array, -1, -2) if swapped else array
        if self.private_bytes + array.nbytes <= self._keep_bytes:
            self._kept[name] = array
            self.private_bytes += array.nbytes
        return array

    def _format(self, name: str) -> Format:
        return formats.BY_NAME[self._values[name].format]

    def operand(self, name: str) -> Array | Stack:
        """What an operator is given: a weight, dequantised, or a stack whose experts are dequantised when asked for."""
        return Stack(self, self._stacks[name]) if name in self._stacks else self.whole(name)


class Stack:
    """Experts `[E, out, in]` of which only those are read that are asked for."""

    def __init__(self, weights: Weights, names: list[str]) -> None:
        self._weights, self._names = weights, names

    def __getitem__(self, index: int) -> Array:
        return self._weights.whole(self._names[index])


def constant(value: Value) -> Array:
    """The array of a `const` value."""
    shape = tuple(d for d in value.shape if isinstance(d, int))
    return np.array(value.data, dtype=dtypes.BY_NAME[value.dtype].numpy).reshape(shape)
