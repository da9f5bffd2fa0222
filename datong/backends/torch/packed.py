"""oneDNN's own layout of a matrix, on the processor: PyTorch lays it anew in each call unless it is given one so laid.

These are the two operators that torch.compile uses for a linear layer on the processor. They are not documented, so
their absence is no error: `packable` says no, and the product is PyTorch's plain one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# Rows for which oneDNN chooses the layout; of 1, 32 and 128 this one was best or near it for 1 to 128 rows.
# Against the plain product (30 layers of SmolLM2, one thread of an AMD EPYC, ms): bf16 1 row 24.8 : 36.2, 8 rows
# 17.6 : 32.0, 128 rows alike; f32 1 row 57 : 52, 8 rows 38.7 : 105, 128 rows 267 : 337.
ROWS = 32


def packable(dtype: torch.dtype) -> bool:
    """Has this build of PyTorch the operators, and has the processor instructions for the element type?"""
    operators: Any = torch.ops.mkldnn
    if not torch._C._has_mkldnn:
        return False
    wanted = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}
    names = ["_reorder_linear_weight", "_linear_pointwise", *([wanted[dtype]] if dtype in wanted else [])]
    if not all(hasattr(operators, name) for name in names):
        return False
    return dtype not in wanted or bool(getattr(operators, wanted[dtype])())


def product(weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """A matrix [out, in] in oneDNN's layout, and the function x [T, in] -> x @ weight.T + bias [T, out]."""
    operators: Any = torch.ops.mkldnn
    packed: Tensor = operators._reorder_linear_weight(weight, ROWS)
    multiply, out = operators._linear_pointwise, weight.shape[0]

    def run(x: Tensor) -> Tensor:
        if not x.shape[0]:  # a step that asks for no logits
            return x.new_empty((0, out))
        y: Tensor = multiply(x, packed, bias, "none", [], "")
        return y

    return packed, run
