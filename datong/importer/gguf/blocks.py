"""GGUF blocks taken apart into the pieces of `spec/formats.py`. Codes and scale bits are kept, only moved.

A block is a C struct; a row of a matrix is a run of them. Each function below sees the raw bytes of some rows as
`[..., block bytes]` u8 and gives one piece of them. Packed 4-bit codes come out two to a byte, low nibble first;
GGUF pairs value i with value i + 16 (or + 32) in one byte, so nibbles do move.
Source: ggml `ggml-common.h` (structs), `ggml-quants.c` dequantize_row_* (order of the values).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from datong.errors import CheckpointError
from datong.importer.gguf.reader import GgufFile, GgufTensor
from datong.importer.gguf.types import CARRIED

Bytes = npt.NDArray[np.uint8]
Rows = npt.NDArray[np.intp]

# Of file bytes per chunk. The widest intermediate (unpacked codes, twice) is four times that, and it all stays in
# a second-level cache; 64 KiB to 4 MiB measure alike.
CHUNK = 1 << 18

# typed, so that no operation leaves u8
_1, _3, _4, _6, _15, _16, _32, _63 = (np.uint8(n) for n in (1, 3, 4, 6, 15, 16, 32, 63))

# where the fields of each block begin: bytes from the start of the block
_Q4_0_QS, _Q4_1_QS, _Q5_0_QH, _Q5_0_QS, _Q5_1_QH, _Q5_1_QS = 2, 4, 2, 6, 4, 8
_K_SCALES, _Q4_K_QS, _Q5_K_QH, _Q5_K_QS = 4, 16, 16, 48
_Q6_K_QH, _Q6_K_SCALES, _Q6_K_D = 128, 192, 208


def _field(begin: int, end: int) -> Callable[[Bytes], Bytes]:
    """A piece that lies in the block as it is."""
    return lambda b: b[..., begin:end]


def _pack(codes: Bytes) -> Bytes:
    """[..., n] values below 16 -> [..., n / 2] bytes, low nibble first."""
    return codes[..., 0::2] | codes[..., 1::2] << _4


def _halves(qs: Bytes) -> Bytes:
    """[..., n] bytes -> [..., 2 n]: all low nibbles, then all high ones."""
    return np.concatenate([qs & _15, qs >> _4], axis=-1)


def _q4_codes(begin: int, flip: int) -> Callable[[Bytes], Bytes]:
    """`flip` 8 turns `q - 8` into a two's complement nibble: the same as inverting its top bit."""
    return lambda b: _pack(_halves(b[..., begin : begin + 16]) ^ np.uint8(flip))


def _q5_codes(high: int, low: int) -> Callable[[Bytes], Bytes]:
    """Bit i of the little-endian u32 at `high` is bit 4 of value i."""

    def codes(b: Bytes) -> Bytes:
        bits = np.unpackbits(b[..., high : high + 4], axis=-1, bitorder="little")
        return _halves(b[..., low : low + 16]) | bits << _4

    return codes


def _k_scales(b: Bytes) -> Bytes:
    """Eight 6-bit scales from 12 bytes: the first four whole, the rest as nibble plus the spare bits of the first."""
    s = b[..., _K_SCALES : _K_SCALES + 12]
    return np.concatenate([s[..., 0:4] & _63, (s[..., 8:12] & _15) | (s[..., 0:4] >> _6 << _4)], axis=-1)


def _k_mins(b: Bytes) -> Bytes:
    s = b[..., _K_SCALES : _K_SCALES + 12]
    return np.concatenate([s[..., 4:8] & _63, (s[..., 8:12] >> _4) | (s[..., 4:8] >> _6 << _4)], axis=-1)


def _k_nibbles(b: Bytes, begin: int) -> Bytes:
    """128 bytes in groups of 32: low nibbles are 32 values, high nibbles the next 32."""
    return _halves(b[..., begin : begin + 128].reshape(*b.shape[:-1], 4, 32)).reshape(*b.shape[:-1], 256)


def _q5_k_codes(b: Bytes) -> Bytes:
    """Bit k of byte i of `qh` is bit 4 of value 32 k + i."""
    shift = np.arange(8, dtype=np.uint8)[:, None]
    high = b[..., None, _Q5_K_QH : _Q5_K_QH + 32] >> shift & _1
    return _k_nibbles(b, _Q5_K_QS) | high.reshape(*b.shape[:-1], 256) << _4


def _q6_k_codes(b: Bytes) -> Bytes:
    """Per half of 128 values: 64 bytes of low nibbles, 32 bytes with the upper two bits of four values each."""
    low = _halves(b[..., :128].reshape(*b.shape[:-1], 2, 64))
    shift = np.arange(0, 8, 2, dtype=np.uint8)[:, None]
    high = b[..., _Q6_K_QH:_Q6_K_SCALES].reshape(*b.shape[:-1], 2, 1, 32) >> shift & _3
    return (low | high.reshape(low.shape) << _4).reshape(*b.shape[:-1], 256) - _32


# type -> piece -> what takes it out of the blocks
PIECES: dict[str, dict[str, Callable[[Bytes], Bytes]]] = {
    "F32": {"codes": _field(0, 4)},
    "F16": {"codes": _field(0, 2)},
    "BF16": {"codes": _field(0, 2)},
    "Q4_0": {"codes": _q4_codes(_Q4_0_QS, flip=8), "scale": _field(0, 2)},
    "Q4_1": {"codes": _q4_codes(_Q4_1_QS, flip=0), "scale": _field(0, 2), "min": _field(2, 4)},
    "Q5_0": {"codes": lambda b: _q5_codes(_Q5_0_QH, _Q5_0_QS)(b) - _16, "scale": _field(0, 2)},
    "Q5_1": {"codes": _q5_codes(_Q5_1_QH, _Q5_1_QS), "scale": _field(0, 2), "min": _field(2, 4)},
    "Q8_0": {"codes": _field(2, 34), "scale": _field(0, 2)},
    "Q4_K": {
        "codes": lambda b: _pack(_k_nibbles(b, _Q4_K_QS)),
        "scale": _k_scales,
        "min": _k_mins,
        "super_scale": _field(0, 2),
        "super_min": _field(2, 4),
    },
    "Q5_K": {
        "codes": _q5_k_codes,
        "scale": _k_scales,
        "min": _k_mins,
        "super_scale": _field(0, 2),
        "super_min": _field(2, 4),
    },
    "Q6_K": {"codes": _q6_k_codes, "scale": _field(_Q6_K_SCALES, _Q6_K_D), "super_scale": _field(_Q6_K_D, _Q6_K_D + 2)},
}


def check_carried(tensor: GgufTensor, where: str) -> None:
    """Raises CheckpointError when the tensor's type has no format of ours."""
    if tensor.type.format is None:
        raise CheckpointError(
            where,
            f"tensor `{tensor.name}` is stored as {tensor.type.name}, which Datong does not carry",
            f"take a file in one of {CARRIED}",
        )


def stream_piece(file: GgufFile, tensor: GgufTensor, piece: str, order: Rows | None = None) -> Iterator[bytes]:
    """The bytes of one piece of a tensor, some rows at a time.

    Args:
        file:   the open file that holds the tensor.
        tensor: of a type in PIECES; the values of a vector count as rows.
        piece:  one of `tensor.type.format.pieces`.
        order:  [rows]; row i of the result is row `order[i]` of the file. None: as they lie.
    """
    take, kind = PIECES[tensor.type.name][piece], tensor.type
    blocks = tensor.shape[-1] // kind.block if len(tensor.shape) > 1 else 1
    raw = np.frombuffer(file.data, np.uint8, tensor.length, tensor.offset).reshape(-1, blocks, kind.nbytes)
    step = max(1, CHUNK // (blocks * kind.nbytes))
    for start in range(0, len(raw), step):
        rows = raw[start : start + step] if order is None else raw[order[start : start + step]]
        yield take(rows).tobytes()
