"""Weight formats: how a matrix `[out, in]` is stored, and what its values are.

Plain formats (`f32`, `f16`, `bf16`) have one piece, `codes`, `[out, in]`.

Block formats cut each row into blocks of B values; with `nb = in / B`:

    w[o, b*B + i] = scale[o, b] * codes[o, b, i]  (+ or -)  min[o, b]

    piece         stored shape        dtype
    codes         [out, nb, B]        i4 u4 i8 u8      4-bit: two to a byte, low nibble first
    scale         [out, nb, 1]        f16              one level; or
    super_scale   [out, ns, 1]        f16              two levels: scale = super_scale * scale,
    scale         [out, ns, k]        u8 i8            where ns = in / super_block, k = super_block / B
    min           like scale          f16 | u8         present where `has_min`
    super_min     like super_scale    f16              present where `has_min` and two levels

The pieces are ordinary tensors of the package: `<name>` is codes, the others are `<name>.<piece>`. In `graph.onnx` the
matrix is stock ONNX (all of it f32, constants of the weights only):

    s = Cast(scale)                                     one level
    s = Reshape(Mul(Cast(super_scale), Cast(scale)), [out, nb, 1])       two levels; min likewise
    w = DequantizeLinear(codes, s, axis=2, block_size=B)
    w = Add(w, m)  |  Sub(w, m)                         where there is a min; `min_sign` says which
    w = Reshape(w, [out, in])

A stack of experts `[E, out, in]` has E in front of every shape above, and axis 3.

GGUF blocks map exactly: no value is re-quantised, only moved. 5- and 6-bit codes are widened to 8 bits, because
ONNX has no such types: values equal, more bytes (Q5_K 5.5 -> 8.6, Q6_K 6.6 -> 8.6 bits per weight).
Source: ggml `ggml-common.h` block structs, `ggml-quants.c` dequantize_row_*.
"""

from __future__ import annotations

from dataclasses import dataclass

from datong import dtypes
from datong.dtypes import DType


@dataclass(frozen=True)
class Format:
    """One weight format; `block == 0` marks a plain one."""

    name: str
    codes: DType
    block: int = 0
    super_block: int = 0  # 0: one level of scales
    scale: DType | None = None
    has_min: bool = False
    min_sign: int = 1

    @property
    def pieces(self) -> tuple[str, ...]:
        """Names of the stored pieces in file order."""
        if not self.block:
            return ("codes",)
        names = ["codes", "scale"] + (["min"] if self.has_min else [])
        if self.super_block:
            names += ["super_scale"] + (["super_min"] if self.has_min else [])
        return tuple(names)

    def piece_dtype(self, piece: str) -> DType:
        """Element type of one piece."""
        if piece == "codes":
            return self.codes
        if piece.startswith("super_"):
            return dtypes.F16
        if piece == "min" and self.super_block:
            return dtypes.U8
        assert self.scale is not None
        return self.scale

    def piece_shape(self, piece: str, *shape: int) -> tuple[int, ...]:
        """Stored shape of a piece of a weight `[out, in]` or `[E, out, in]`; the (super) block divides `in`."""
        *rows, in_ = shape
        if not self.block:
            return shape
        if piece == "codes":
            return (*rows, in_ // self.block, self.block)
        if not self.super_block:
            return (*rows, in_ // self.block, 1)
        supers = in_ // self.super_block
        return (*rows, supers, 1) if piece.startswith("super_") else (*rows, supers, self.super_block // self.block)


PLAIN_F32 = Format("f32", dtypes.F32)
PLAIN_F16 = Format("f16", dtypes.F16)
PLAIN_BF16 = Format("bf16", dtypes.BF16)
Q4_0 = Format("q4_0", dtypes.I4, 32, 0, dtypes.F16)
Q4_1 = Format("q4_1", dtypes.U4, 32, 0, dtypes.F16, has_min=True)
Q5_0 = Format("q5_0", dtypes.I8, 32, 0, dtypes.F16)
Q5_1 = Format("q5_1", dtypes.U8, 32, 0, dtypes.F16, has_min=True)
Q8_0 = Format("q8_0", dtypes.I8, 32, 0, dtypes.F16)
Q4_K = Format("q4_k", dtypes.U4, 32, 256, dtypes.U8, has_min=True, min_sign=-1)
Q5_K = Format("q5_k", dtypes.U8, 32, 256, dtypes.U8, has_min=True, min_sign=-1)
Q6_K = Format("q6_k", dtypes.I8, 16, 256, dtypes.I8)

ALL: tuple[Format, ...] = (
    PLAIN_F32, PLAIN_F16, PLAIN_BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K,
)  # fmt: skip
BY_NAME = {f.name: f for f in ALL}
