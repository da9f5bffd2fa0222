"""Moore Threads: operators that torch_musa adds to aten, and those of vllm-musa's extension.

aten::rope is not here: it takes angles and computes cos and sin itself, and a program gives the tables. Attention needs
no binding: scaled_dot_product_attention is muDNN's on this device.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from datong.backends.torch.binding import Batch, Binding, Context, Terms
from datong.backends.torch.fused.common import (
    FLOATS,
    HALVES,
    Values,
    cache_is,
    dtype_is,
    first,
    half,
    head_is,
    in_place,
    joined,
    norm_weight,
    number,
    own,
    silu_only,
    width,
)
from datong.spec.program import Node

MOST = 16384  # channels; vllm_musa/layernorm _can_use_musa_fused_add_rms_norm


def _refuse_floats(node: Node, values: Values, terms: Terms) -> str | None:
    return dtype_is(terms, FLOATS)


def _refuse_glu(node: Node, values: Values, terms: Terms) -> str | None:
    return first(dtype_is(terms, FLOATS), silu_only(node))


def _rms_norm(node: Node, context: Context) -> Callable[..., Tensor]:
    """Y, and 1/rms which we do not need."""
    weight, eps, operator = norm_weight(node, context, node.inputs[1]), number(node, "eps"), context.operator
    dims = [len(weight)]

    def call(x: Tensor) -> Tensor:
        if not x.shape[0]:
            return torch.empty_like(x)
        y: Tensor = operator(x.contiguous().view(-1, *dims), dims, eps, weight)[0]
        return y.view(x.shape)

    return call


def _refuse_add_rms_norm(node: Node, values: Values, terms: Terms) -> str | None:
    size = width(values, node.inputs[0])
    fits = None if size % 8 == 0 and size <= MOST else f"takes up to {MOST} channels in steps of 8, here {size}"
    return first(dtype_is(terms, HALVES), fits, in_place(node, terms, 2))


def _add_rms_norm(node: Node, context: Context) -> Callable[..., tuple[Tensor, Tensor]]:
    """In place: the residual becomes the sum, the other one the norm of it."""
    weight, eps, operator = norm_weight(node, context, node.inputs[2]), number(node, "eps"), context.operator

    def call(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        y, total = own(a, node.inputs[0], context), own(b, node.inputs[1], context)
        if a.shape[0]:
            operator(y, total, weight, eps)
        return total, y

    return call


def _glu(node: Node, context: Context) -> Callable[..., Tensor]:
    operator = context.operator

    def call(gate: Tensor, up: Tensor | None = None) -> Tensor:
        x = joined(gate, up)
        y: Tensor = operator(x) if x.shape[0] else half(x)
        return y

    return call


def _refuse_write(node: Node, values: Values, terms: Terms) -> str | None:
    return first(dtype_is(terms, HALVES), cache_is(terms, "nhd"), head_is(node, values, multiple=8))


def _write(node: Node, context: Context) -> Callable[..., None]:
    operator = context.operator

    def call(key: Tensor, value: Tensor, keys: Tensor, values: Tensor, batch: Batch) -> None:
        operator(key.contiguous(), value.contiguous(), keys, values, batch.slots)

    return call


BINDINGS = (
    ("torch.ops.aten._fused_rmsnorm_forward", Binding("rms_norm", _refuse_floats, _rms_norm)),
    ("torch.ops.aten.swish_glu", Binding("glu", _refuse_glu, _glu)),
    (
        "torch.ops._C_musa_ops.musa_fused_add_rms_norm",
        Binding("add_rms_norm", _refuse_add_rms_norm, _add_rms_norm),
    ),
    (
        "torch.ops._C_musa_ops.musa_reshape_and_cache_flash_nhd",
        Binding("attention.write", _refuse_write, _write),
    ),
)
