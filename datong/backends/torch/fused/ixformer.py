"""Iluvatar CoreX: functions of the Python package ixformer (ixformer.inference.functions).

They come with Python references of their own, which fix what the words mean: a window of W tokens is window_left =
W - 1; softcap is applied there to the result instead of the scores, so nothing with a softcap goes to it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from datong.backends.torch.binding import Batch, Binding, Context, Terms
from datong.backends.torch.fused.common import (
    FLOATS,
    HALVES,
    OncePerStep,
    Values,
    cache_is,
    cos_sin,
    dtype_is,
    first,
    half,
    head_is,
    joined,
    norm_weight,
    number,
    own,
    plain,
    silu_only,
    whole,
    whole_head,
    width,
)
from datong.spec.program import Node


def _refuse_floats(node: Node, values: Values, terms: Terms) -> str | None:
    return dtype_is(terms, FLOATS)


def _refuse_glu(node: Node, values: Values, terms: Terms) -> str | None:
    return first(dtype_is(terms, FLOATS), silu_only(node))


def _rms_norm(node: Node, context: Context) -> Callable[..., Tensor]:
    weight, eps, operator = norm_weight(node, context, node.inputs[1]), number(node, "eps"), context.operator

    def call(x: Tensor) -> Tensor:
        if not x.shape[0]:
            return torch.empty_like(x)
        y: Tensor = operator(x.contiguous().view(-1, len(weight)), weight, eps=eps)
        return y.view(x.shape)

    return call


def _add_rms_norm(node: Node, context: Context) -> Callable[..., tuple[Tensor, Tensor]]:
    """Not in place: both results have tensors of their own."""
    weight, eps, operator = norm_weight(node, context, node.inputs[2]), number(node, "eps"), context.operator

    def call(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        y, total = (torch.empty_like(a, memory_format=torch.contiguous_format) for _ in range(2))
        if a.shape[0]:
            dense = a.contiguous(), b.contiguous()
            y, total = operator(dense[0], weight, eps=eps, residual=dense[1], output=y, residual_output=total)
        return total, y

    return call


def _refuse_rope(node: Node, values: Values, terms: Terms) -> str | None:
    return first(dtype_is(terms, FLOATS), whole_head(node, values))


def _rope(node: Node, context: Context) -> Callable[..., Tensor]:
    """In place, queries and keys in one call: ours has one of them, so a row of one head stands in for the other."""
    heads, operator = whole(node, "num_heads"), context.operator
    dim, neox = width(context.values, node.inputs[0]) // heads, not whole(node, "interleaved")

    def call(x: Tensor, rows: Tensor, table: Tensor) -> Tensor:
        y = own(x, node.inputs[0], context)
        if x.shape[0]:
            operator(rows, y, y.new_empty((x.shape[0], dim)), dim, table, is_neox_style=neox)
        return y

    return call


def _glu(node: Node, context: Context) -> Callable[..., Tensor]:
    operator = context.operator

    def call(gate: Tensor, up: Tensor | None = None) -> Tensor:
        x = joined(gate, up)
        y: Tensor = operator(x) if x.shape[0] else half(x)
        return y

    return call


def _refuse_write(node: Node, values: Values, terms: Terms) -> str | None:
    return first(dtype_is(terms, FLOATS), cache_is(terms, "hnd"), head_is(node, values))


def _write(node: Node, context: Context) -> Callable[..., None]:
    operator = context.operator

    def call(key: Tensor, value: Tensor, keys: Tensor, values: Tensor, batch: Batch) -> None:
        operator(key.contiguous(), value.contiguous(), keys, values, batch.slots)

    return call


def _refuse_decode(node: Node, values: Values, terms: Terms) -> str | None:
    reasons = (dtype_is(terms, HALVES), cache_is(terms, "hnd"), head_is(node, values), plain(node, window=True))
    return first(*reasons)


def _decode(node: Node, context: Context) -> Callable[..., Tensor]:
    """Block tables stay int32, as every caller that we found has them; the docstring says int64."""
    operator, kv_heads, scale = context.operator, whole(node, "num_kv_heads"), number(node, "scale")
    window = whole(node, "window")

    def call(query: Tensor, keys: Tensor, values: Tensor, batch: Batch) -> Tensor:
        y = torch.empty_like(query, memory_format=torch.contiguous_format)
        operator(
            y,
            query.contiguous(),
            keys,
            values,
            kv_heads,
            scale,
            batch.block_tables,
            batch.context_lens,
            context.block_size,
            batch.max_context,
            causal=True,
            window_left=window - 1 if window else -1,
        )
        return y

    return call


def _refuse_prefill(node: Node, values: Values, terms: Terms) -> str | None:
    blocks = cache_is(terms, "hnd", multiple=16, lowest=16, highest=256)
    return first(dtype_is(terms, HALVES), blocks, head_is(node, values, multiple=8, highest=256), plain(node))


def _prefill(node: Node, context: Context) -> Callable[..., Tensor]:
    operator, scale = context.operator, number(node, "scale")
    ends = OncePerStep(lambda batch: functional.pad(batch.context_lens.cumsum(0, dtype=torch.int32), (1, 0)))

    def call(query: Tensor, key: Tensor, value: Tensor, keys: Tensor, values: Tensor, batch: Batch) -> Tensor:
        y: Tensor = operator(
            query.contiguous(),
            keys,
            values,
            batch.query_starts,
            ends(batch),
            batch.max_new,
            batch.max_context,
            softmax_scale=scale,
            causal=True,
            block_table=batch.block_tables,
        )
        return y

    return call


_FUNCTIONS, _FLASH = "ixformer.inference.functions.", "ixformer.contrib.vllm_flash_attn.flash_attn_varlen_func"
BINDINGS = (
    (_FUNCTIONS + "rms_norm", Binding("rms_norm", _refuse_floats, _rms_norm)),
    (_FUNCTIONS + "residual_rms_norm", Binding("add_rms_norm", _refuse_floats, _add_rms_norm)),
    (_FUNCTIONS + "vllm_rotary_embedding", Binding("rope", _refuse_rope, _rope, tables=cos_sin)),
    (_FUNCTIONS + "silu_and_mul", Binding("glu", _refuse_glu, _glu)),
    (_FUNCTIONS + "vllm_reshape_and_cache", Binding("attention.write", _refuse_write, _write)),
    (
        "ixformer.contrib.vllm_flash_attn.flash_attn_varlen_func",
        Binding("attention.prefill", _refuse_prefill, _prefill),
    ),
    (_FUNCTIONS + "vllm_paged_attention", Binding("attention.decode", _refuse_decode, _decode)),
)
