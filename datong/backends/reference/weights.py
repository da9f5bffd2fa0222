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
from datong.spec.program import Piece, Value
from datong.spec.reference import dequantise

Array = NDArray[Any]


class Weights:
    """The weights of one part, by value name."""

    def __init__(self, package: str, values: Mapping[str, Value], keep_bytes: int) -> None:
        self._files: dict[str, Array] = {}
        self._root = Path(package)
        self._kept: dict[str, Array] = {}
        self._keep_bytes = keep_bytes
        self.private_bytes = 0  # of dequantised copies that are kept
        self._pieces = {
            name: {piece.role: self._map(piece) for piece in value.pieces}
            for name, value in values.items()
            if value.kind == "weight"
        }
        self._formats = {n: formats.BY_NAME[v.format] for n, v in values.items() if v.kind == "weight"}
        self.mapped_bytes = sum(p.nbytes for pieces in self._pieces.values() for p in pieces.values())

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
        """Some rows of a matrix, dequantised: rows [R] i64, or a range -> [R, in] f32, a copy."""
        return dequantise(self._formats[name], {role: p[rows] for role, p in self._pieces[name].items()})

    def whole(self, name: str) -> Array:
        """A weight, dequantised: its logical shape, f32. A view of the file where it is stored as f32."""
        if name in self._kept:
            return self._kept[name]
        pieces = self._pieces[name]
        if self._formats[name] is formats.PLAIN_F32:
            return pieces["codes"]
        array = dequantise(self._formats[name], pieces)
        if self.private_bytes + array.nbytes <= self._keep_bytes:
            self._kept[name] = array
            self.private_bytes += array.nbytes
        return array


def constant(value: Value) -> Array:
    """The array of a `const` value."""
    shape = tuple(d for d in value.shape if isinstance(d, int))
    return np.array(value.data, dtype=dtypes.BY_NAME[value.dtype].numpy).reshape(shape)
