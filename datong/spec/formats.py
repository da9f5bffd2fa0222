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

Tile formats, which float checkpoints use, share a scale among R rows of B columns; the last tiles may be partial:

    w[o, i] = value(codes[o, i]) * scale[o // R, i // B]          each operation rounded to f32

    codes         [out, in]                            f8e4m3; u4, which stands for a row of TABLES
    scale         [ceil(out / R), ceil(in / B)]        f32 bf16 f8e8m0 f8e4m3
    factor        [1]                                  f32: scales are multiplied with it, or divided by it
    zero          like scale                           u8: subtracted from the codes

In `graph.onnx` that is the function `datong::DequantizeTiles` (importer/functions_tiles.py), its body stock ONNX. The
bytes are those of the checkpoint, in place. Sources: OCP OFP8 1.0 (e4m3fn), OCP MX 1.0 (e2m1, e8m0).

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
    tile: int = 0  # rows that share a scale, in a tile format
    table: str = ""  # of TABLES: what codes stand for; empty: their own value
    has_zero: bool = False  # of a tile format
    factor: int = 0  # 1: scales are multiplied with one more number, -1: divided by it

    @property
    def pieces(self) -> tuple[str, ...]:
        """Names of the stored pieces in file order."""
        if not self.block:
            return ("codes",)
        names = ["codes", "scale"] + (["min"] if self.has_min else [])
        names += ["factor"] * bool(self.factor) + ["zero"] * self.has_zero
        if self.super_block:
            names += ["super_scale"] + (["super_min"] if self.has_min else [])
        return tuple(names)

    def piece_dtype(self, piece: str) -> DType:
        """Element type of one piece."""
        if piece == "codes":
            return self.codes
        if piece in ("factor", "zero"):
            return dtypes.F32 if piece == "factor" else dtypes.U8
        if piece.startswith("super_"):
            return dtypes.F16
        if piece == "min" and self.super_block:
            return dtypes.U8
        assert self.scale is not None
        return self.scale

    def piece_shape(self, piece: str, *shape: int) -> tuple[int, ...]:
        """Stored shape of a piece of a weight `[out, in]` or `[E, out, in]`; blocks divide `in`, tiles need not."""
        *rows, in_ = shape
        if not self.block:
            return shape
        if self.tile:
            *stack, out = rows
            if piece == "factor":
                return (*stack, 1)
            return shape if piece == "codes" else (*stack, -(-out // self.tile), -(-in_ // self.block))
        if piece == "codes":
            return (*rows, in_ // self.block, self.block)
        if not self.super_block:
            return (*rows, in_ // self.block, 1)
        supers = in_ // self.super_block
        return (*rows, supers, 1) if piece.startswith("super_") else (*rows, supers, self.super_block // self.block)


_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
TABLES: dict[str, tuple[float, ...]] = {  # values of the codes 0 to 15
    "e2m1": (*_E2M1, *(-v for v in _E2M1)),
    "less8": tuple(float(i - 8) for i in range(16)),
}
WHOLE = 1 << 30  # as `block` or `tile`: all columns, all rows

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
FP8_128 = Format("fp8_128", dtypes.F8E4M3, 128, 0, dtypes.F32, tile=128)
FP8_128_BF16 = Format("fp8_128_bf16", dtypes.F8E4M3, 128, 0, dtypes.BF16, tile=128)
FP8_128_E8M0 = Format("fp8_128_e8m0", dtypes.F8E4M3, 128, 0, dtypes.F8E8M0, tile=128)
MXFP8 = Format("mxfp8", dtypes.F8E4M3, 32, 0, dtypes.F8E8M0, tile=1)
MXFP4 = Format("mxfp4", dtypes.U4, 32, 0, dtypes.F8E8M0, tile=1, table="e2m1")
NVFP4 = Format("nvfp4", dtypes.U4, 16, 0, dtypes.F8E4M3, tile=1, table="e2m1", factor=1)
NVFP4_DIV = Format("nvfp4_div", dtypes.U4, 16, 0, dtypes.F8E4M3, tile=1, table="e2m1", factor=-1)

ALL: tuple[Format, ...] = (
    PLAIN_F32, PLAIN_F16, PLAIN_BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K,
    FP8_128, FP8_128_BF16, FP8_128_E8M0, MXFP8, MXFP4, NVFP4, NVFP4_DIV,
)  # fmt: skip


def _grouped() -> tuple[Format, ...]:
    """Codes with one scale per group of a row, per row, or per matrix: `<codes>_<group>_<type of the scale>`.

    i8 f8     their own values            u4z u8z   less a zero of the group
    u4m8      less 8
    """
    codes = {
        "i8": {"codes": dtypes.I8}, "f8": {"codes": dtypes.F8E4M3}, "u4m8": {"codes": dtypes.U4, "table": "less8"},
        "u4z": {"codes": dtypes.U4, "has_zero": True}, "u8z": {"codes": dtypes.U8, "has_zero": True},
    }  # fmt: skip
    groups = {"32": (32, 1), "64": (64, 1), "128": (128, 1), "row": (WHOLE, 1), "all": (WHOLE, WHOLE)}
    return tuple(
        Format(f"{kind}_{group}_{scale.name}", block=block, tile=tile, scale=scale, **fields)  # type: ignore[arg-type]
        for kind, fields in codes.items()
        for group, (block, tile) in groups.items()
        for scale in (dtypes.F16, dtypes.BF16, dtypes.F32)
    )


GROUPED: tuple[Format, ...] = _grouped()
BY_NAME = {f.name: f for f in (*ALL, *GROUPED)}
