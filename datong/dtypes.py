"""The one table of element types: our name, bits, ONNX id, safetensors name, NumPy dtype, C enum (`backend.h`).

4-bit values are packed two to a byte, low nibble first (ONNX IR, PackedTensor); NumPy sees them as `uint8` bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class DType:
    """One element type."""

    name: str
    bits: int
    onnx: int  # TensorProto.DataType
    c: int  # dt_dtype in native/include/datong/backend.h
    safetensors: str
    stored: str  # NumPy's name of the type of the stored bytes, or that of ml_dtypes

    @cached_property
    def numpy(self) -> np.dtype:
        """The type of the stored bytes; for 4-bit types that is `uint8`, two values each."""
        found = getattr(np, self.stored, None)
        if found is None:
            import ml_dtypes  # 5 ms and 2.4 MB, which most runs on a CPU save

            found = getattr(ml_dtypes, self.stored)
        dtype: np.dtype = np.dtype(found)
        return dtype

    def nbytes(self, elements: int) -> int:
        """Bytes that `elements` values occupy when packed."""
        return (elements * self.bits + 7) // 8


F32 = DType("f32", 32, 1, 1, "F32", "float32")
F16 = DType("f16", 16, 10, 2, "F16", "float16")
BF16 = DType("bf16", 16, 16, 3, "BF16", "bfloat16")
I64 = DType("i64", 64, 7, 4, "I64", "int64")
I32 = DType("i32", 32, 6, 5, "I32", "int32")
I8 = DType("i8", 8, 3, 6, "I8", "int8")
U8 = DType("u8", 8, 2, 7, "U8", "uint8")
I4 = DType("i4", 4, 22, 8, "U8", "uint8")
U4 = DType("u4", 4, 21, 9, "U8", "uint8")
BOOL = DType("bool", 8, 9, 10, "BOOL", "bool_")
F8E4M3 = DType("f8e4m3", 8, 17, 11, "F8_E4M3", "float8_e4m3fn")
F8E8M0 = DType("f8e8m0", 8, 24, 12, "F8_E8M0", "float8_e8m0fnu")

ALL: tuple[DType, ...] = (F32, F16, BF16, I64, I32, I8, U8, I4, U4, BOOL, F8E4M3, F8E8M0)

# Types that chips have or lack and no package carries: descriptors name them. No C enum (0), no packed form.
F64 = DType("f64", 64, 11, 0, "F64", "float64")
F8E5M2 = DType("f8e5m2", 8, 19, 0, "F8_E5M2", "float8_e5m2")
F4E2M1 = DType("f4e2m1", 4, 23, 0, "F4", "uint8")

CHIPS_ONLY: tuple[DType, ...] = (F64, F8E5M2, F4E2M1)
NAMES = frozenset(d.name for d in (*ALL, *CHIPS_ONLY))

BY_NAME = {d.name: d for d in ALL}
BY_ONNX = {d.onnx: d for d in ALL}
BY_SAFETENSORS = {d.safetensors: d for d in ALL if d.bits >= 8}
