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
BY_NAME = {d.name: d for d in ALL}
BY_ONNX = {d.onnx: d for d in ALL}
BY_SAFETENSORS = {d.safetensors: d for d in ALL if d.bits >= 8}
