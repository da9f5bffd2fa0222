"""PyTorch's element types under the names that descriptors use."""

from __future__ import annotations

import torch

_NAMES = {
    "float64": "f64",
    "float32": "f32",
    "float16": "f16",
    "bfloat16": "bf16",
    "float8_e4m3fn": "f8e4m3",
    "float8_e5m2": "f8e5m2",
    "float8_e8m0fnu": "f8e8m0",
    "float4_e2m1fn_x2": "f4e2m1",
    "int64": "i64",
    "int32": "i32",
    "int16": "i16",
    "int8": "i8",
    "uint64": "u64",
    "uint32": "u32",
    "uint16": "u16",
    "uint8": "u8",
    "bool": "bool",
    "complex64": "c64",
    "complex128": "c128",
}
NAMES: dict[torch.dtype, str] = {getattr(torch, name): ours for name, ours in _NAMES.items() if hasattr(torch, name)}


def name_of(dtype: torch.dtype) -> str:
    """`f32`; PyTorch's own name for one that no descriptor mentions."""
    return NAMES.get(dtype, str(dtype).removeprefix("torch."))
