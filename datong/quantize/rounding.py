"""Float blocks -> codes and scales of q8_0 and q4_0: symmetric, 32 values, one f16 scale (spec/formats.py).

The scale is searched, not computed: of a fixed list of scales, each as f16 stores it, the one whose block has the least
(weighted) squared error; then the least-squares scale for the codes that it gives, if that is better still. A scale may
be negative, since -8 .. 7 reaches further on one side. Ties: the first. All in f32, so the same numbers give the
same bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from datong.spec.formats import Q4_0, Q8_0, Format

F32 = npt.NDArray[np.float32]

LARGEST = np.float32(np.finfo(np.float16).max)


@dataclass(frozen=True)
class Grid:
    """The codes of a format, and where the search puts the value of largest magnitude."""

    format: Format
    low: int
    high: int
    targets: tuple[float, ...]  # codes, not whole ones, that the largest value is scaled to; the usual choice first


# Below the usual -8 (or 127) the scale is wider than needed; beyond it the largest value is cut, the others gain.
GRIDS = {
    Q8_0.name: Grid(Q8_0, -127, 127, (127.0, 126.75, 126.5, 126.25, 126.0, 127.25, 127.5, 128.0)),
    Q4_0.name: Grid(
        Q4_0, -8, 7,
        (-8.0, 7.0, -7.0, 6.0, -7.25, -7.5, -7.75, -8.25, -8.5, -9.0, -9.5, -6.5, 6.5, 6.75, 7.25, 7.5, 8.0, 8.5),
    ),
}  # fmt: skip


def scales(blocks: F32, grid: Grid, weights: F32 | None = None) -> npt.NDArray[np.float16]:
    """The scale of least squared error of each block.

    Args:
        blocks:  [n, B], finite.
        grid:    of the format.
        weights: [n or 1, B], >= 0: how much the square of each value's error counts; None: all alike.

    Returns:
        [n, 1]; 0 for a block of zeros, and for one too small for f16.
    """
    peak = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=1)[:, None], axis=1)
    best = np.zeros((len(blocks), 1), np.float16)
    least = np.full((len(blocks), 1), np.inf, np.float32)

    def consider(wide: F32) -> None:
        scale = np.clip(wide, -LARGEST, LARGEST).astype(np.float16)
        error = blocks - encode(blocks, scale, grid) * scale.astype(np.float32)
        total = _sum(np.square(error, out=error), weights)
        better = total < least
        least[better], best[better] = total[better], scale[better]

    for target in grid.targets:
        consider(peak / np.float32(target))
    codes = encode(blocks, best, grid)
    norm = _sum(codes * codes, weights)
    consider(np.divide(_sum(blocks * codes, weights), norm, out=np.zeros_like(norm), where=norm > 0))
    return best


def _sum(values: F32, weights: F32 | None) -> F32:
    """[n, B] -> [n, 1], weighted."""
    total: F32 = (values if weights is None else values * weights).sum(axis=1, keepdims=True)
    return total


def encode(values: F32, scale: npt.NDArray[np.float16], grid: Grid) -> F32:
    """The nearest code of each value, a whole number in f32: values [n, k], scale [n, 1] -> [n, k]."""
    wide = scale.astype(np.float32)
    inverse = np.divide(np.float32(1), wide, out=np.zeros_like(wide), where=wide != 0)
    codes: F32 = values * inverse
    np.rint(codes, out=codes)
    return np.clip(codes, grid.low, grid.high, out=codes)


def pack(codes: F32, grid: Grid) -> bytes:
    """Codes, blocks one after another, as the format stores them: 4-bit ones two to a byte, low nibble first."""
    whole = codes.astype(np.int8)
    if grid.format.codes.bits == 8:
        return whole.tobytes()
    nibbles = whole.view(np.uint8).reshape(-1) & np.uint8(15)
    return (nibbles[0::2] | nibbles[1::2] << np.uint8(4)).tobytes()
