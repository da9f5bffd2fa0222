"""Moore Threads: what torch_musa adds to aten, and vllm-musa's extension.

Sources: torch_musa torch_patches/…native_functions.yaml.patch and its unit tests; vllm-musa csrc/musa and the
conditions of its layernorm.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from datong.backends.sim.operators.formulas import check_dense, check_types, rms, silu_mul
from datong.backends.sim.operators.vllm import write_nhd
from datong.backends.sim.rules import require

TORCH = "A: torch_musa torch_patches and tests/unittest/operator"
VLLM = "A: vllm-musa csrc/musa, vllm_musa layernorm"
FLOATS = (torch.float16, torch.bfloat16, torch.float32)
HALVES = (torch.float16, torch.bfloat16)
ADD_NORM = "torch.ops._C_musa_ops.musa_fused_add_rms_norm"
WRITE = "torch.ops._C_musa_ops.musa_reshape_and_cache_flash_nhd"


def fused_rmsnorm_forward(
    *, input: Tensor, normalized_shape: Sequence[int], eps: float, weight: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Norm over the last dims, and 1/rms without them."""
    name = "torch.ops.aten._fused_rmsnorm_forward"
    check_types(name, FLOATS, TORCH, input=input, **({} if weight is None else {"weight": weight}))
    fits = list(input.shape[-len(normalized_shape) :]) == list(normalized_shape)
    came = f"it is {list(normalized_shape)}, input {list(input.shape)}"
    require(fits, name, "should have normalized_shape of the last dims of input", came, TORCH)
    y, inverse = rms(input.flatten(-len(normalized_shape)), None if weight is None else weight.flatten(), eps)
    return y.view(input.shape), inverse.squeeze(-1)


def swish_glu(*, input: Tensor) -> Tensor:
    """Swish of the first half, times the second."""
    check_types("torch.ops.aten.swish_glu", FLOATS, TORCH, input=input)
    return silu_mul(input)


def musa_fused_add_rms_norm(*, input: Tensor, residual: Tensor, weight: Tensor, eps: float, block_x: int) -> None:
    """Residual += input; input = norm of it. Dense rows of up to 16384 channels in steps of 8."""
    check_types(ADD_NORM, HALVES, VLLM, input=input, residual=residual, weight=weight)
    check_dense(ADD_NORM, VLLM, input=input, residual=residual, weight=weight)
    size = input.shape[-1]
    fits = input.dim() == 2 and size % 8 == 0 and size <= 16384
    require(fits, ADD_NORM, "should have rows of up to 16384 channels in steps of 8", f"{list(input.shape)}", VLLM)
    total = input.float() + residual.float()
    residual.copy_(total)
    input.copy_(rms(total, weight, eps)[0])


def musa_reshape_and_cache_flash_nhd(
    *, key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slot_mapping: Tensor, block_x: int
) -> None:
    """Key and value [tokens, heads, D] into [blocks, block, heads, D]."""
    check_types(WRITE, HALVES, VLLM, key=key, value=value, key_cache=key_cache, value_cache=value_cache)
    write_nhd(WRITE, key, value, key_cache, value_cache, slot_mapping)


OPERATORS = {
    "torch.ops.aten._fused_rmsnorm_forward": fused_rmsnorm_forward,
    "torch.ops.aten.swish_glu": swish_glu,
    ADD_NORM: musa_fused_add_rms_norm,
    WRITE: musa_reshape_and_cache_flash_nhd,
}
