"""The one table of element types: our name, bits, ONNX id, safetensors name, NumPy dtype, C enum (`backend.h`).

4-bit values are packed two to a byte, low nibble first (ONNX IR, PackedTensor); NumPy sees them as `uint8` bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class DType:
    """One element type. `numpy` is the type of the stored bytes; for 4-bit types that is `uint8`, two values each."""

    name: str
    bits: int
    onnx: int  # TensorProto.DataType
    c: int  # dt_dtype in native/include/datong/backend.h
    safetensors: str
    numpy: np.dtype

    def nbytes(self, elements: int) -> int:
        """Bytes that `elements` values occupy when packed."""
        return (elements * self.bits + 7) // 8


def _row(name: str, bits: int, onnx: int, c: int, safetensors: str, numpy: npt.DTypeLike) -> DType:
    return DType(name, bits, onnx, c, safetensors, np.dtype(numpy))


F32 = _row("f32", 32, 1, 1, "F32", np.float32)
F16 = _row("f16", 16, 10, 2, "F16", np.float16)
BF16 = _row("bf16", 16, 16, 3, "BF16", ml_dtypes.bfloat16)
I64 = _row("i64", 64, 7, 4, "I64", np.int64)
I32 = _row("i32", 32, 6, 5, "I32", np.int32)
I8 = _row("i8", 8, 3, 6, "I8", np.int8)
U8 = _row("u8", 8, 2, 7, "U8", np.uint8)
I4 = _row("i4", 4, 22, 8, "U8", np.uint8)
U4 = _row("u4", 4, 21, 9, "U8", np.uint8)
BOOL = _row("bool", 8, 9, 10, "BOOL", np.bool_)

ALL: tuple[DType, ...] = (F32, F16, BF16, I64, I32, I8, U8, I4, U4, BOOL)

# Types that chips have or lack and no package carries: descriptors name them. No C enum (0), no packed form.
F64 = _row("f64", 64, 11, 0, "F64", np.float64)
F8E4M3 = _row("f8e4m3", 8, 17, 0, "F8_E4M3", ml_dtypes.float8_e4m3fn)
F8E5M2 = _row("f8e5m2", 8, 19, 0, "F8_E5M2", ml_dtypes.float8_e5m2)
F8E8M0 = _row("f8e8m0", 8, 24, 0, "F8_E8M0", ml_dtypes.float8_e8m0fnu)
F4E2M1 = _row("f4e2m1", 4, 23, 0, "F4", np.uint8)

CHIPS_ONLY: tuple[DType, ...] = (F64, F8E4M3, F8E5M2, F8E8M0, F4E2M1)
NAMES = frozenset(d.name for d in (*ALL, *CHIPS_ONLY))

BY_NAME = {d.name: d for d in ALL}
BY_ONNX = {d.onnx: d for d in ALL}
BY_SAFETENSORS = {d.safetensors: d for d in ALL if d.bits >= 8}
