"""The definition of every weight format of formats.py, in NumPy: what the stored pieces of a matrix stand for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datong.spec.formats import TABLES, Format

Array = NDArray[Any]


def unpack_nibbles(packed: Array, *, signed: bool) -> Array:
    """Two 4-bit values per byte, low nibble first: [..., n/2] u8 -> [..., n] i8 (signed: two's complement) or u8."""
    values = np.stack([packed & 0xF, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)
    return ((values ^ 8).astype(np.int8) - np.int8(8)) if signed else values


def select(fmt: Format, pieces: Mapping[str, Array], rows: Array | slice) -> dict[str, Array]:
    """The pieces of some rows of a matrix, for `dequantise`: the scale of a tile once for each of its rows in `rows`.

    Args:
        fmt:    a row of formats.py.
        pieces: by role, in the stored shape.
        rows:   [R] i64, or a range.
    """
    if fmt.tile < 2:
        return {role: piece if role == "factor" else piece[rows] for role, piece in pieces.items()}
    tiles = np.arange(len(pieces["codes"]))[rows] // fmt.tile
    return {role: piece[rows] if role == "codes" else piece[tiles] for role, piece in pieces.items()}


def dequantise(fmt: Format, pieces: Mapping[str, Array]) -> Array:
    """What a stored matrix stands for; rows are independent, so any selection of them (`select`) may be passed.

    Args:
        fmt:    a row of formats.py.
        pieces: by role, in the stored shape (`fmt.piece_shape`) and dtype; 4-bit codes as bytes [out, nb, B/2] u8.
            In a tile format the scale may have a row for each row of codes.

    Returns:
        [out, in] f32; plain formats keep any shape. Exact but for one rounding where there is a min or a tile: a
        product of f16 scale, 8-bit scale and code has at most 24 significant bits in every block format, so their
        order is free.

    Source: ggml-quants.c dequantize_row_*; formats.py.
    """
    codes = np.asarray(pieces["codes"])
    if not fmt.block:
        return codes.astype(np.float32)
    if fmt.tile:
        codes = unpack_nibbles(codes, signed=False) if fmt.codes.bits == 4 else codes
        values = np.array(TABLES[fmt.table], np.float32)[codes] if fmt.table else codes.astype(np.float32)
        if fmt.has_zero:
            values = values - _spread(fmt, np.asarray(pieces["zero"]).astype(np.float32), *codes.shape)
        return np.asarray(values * _tile_factor(fmt, pieces, *codes.shape), np.float32)
    if fmt.codes.bits == 4:
        codes = unpack_nibbles(codes, signed=fmt.codes.name == "i4")
    w = codes.astype(np.float32) * _block_factor(fmt, pieces, "scale")
    if fmt.has_min:
        w += np.float32(fmt.min_sign) * _block_factor(fmt, pieces, "min")
    return w.reshape(w.shape[0], -1)


def _block_factor(fmt: Format, pieces: Mapping[str, Array], role: str) -> Array:
    """Scale or min of each block, [out, nb, 1] f32."""
    factor = np.asarray(pieces[role]).astype(np.float32)
    if fmt.super_block:
        factor = np.asarray(pieces[f"super_{role}"]).astype(np.float32) * factor
    return factor.reshape(factor.shape[0], -1, 1)


def _tile_factor(fmt: Format, pieces: Mapping[str, Array], out: int, in_: int) -> Array:
    """Scale of each value, [out, in] f32."""
    scale = np.asarray(pieces["scale"]).astype(np.float32)
    if fmt.factor:
        factor = np.asarray(pieces["factor"]).reshape(())
        scale = scale * factor if fmt.factor > 0 else scale / factor
    return _spread(fmt, scale, out, in_)


def _spread(fmt: Format, tiles: Array, out: int, in_: int) -> Array:
    """A number per tile, or per row and block, for each value: [out, in]."""
    if len(tiles) != out:
        tiles = np.repeat(tiles, min(fmt.tile, out), axis=0)[:out]
    return np.repeat(tiles, min(fmt.block, in_), axis=1)[:, :in_]
