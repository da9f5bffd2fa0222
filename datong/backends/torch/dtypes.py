"""PyTorch's element types by our names (datong/dtypes.py)."""

from __future__ import annotations

import torch

DTYPES: dict[str, torch.dtype] = {
    "f32": torch.float32,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "i64": torch.int64,
    "i32": torch.int32,
}
