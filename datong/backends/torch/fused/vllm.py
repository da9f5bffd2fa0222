"""Operators with the signatures of vLLM's own extension, which Enflame (vllm-gcu) and MetaX (mcoplib) register.

Results go into tensors that the caller gives. The two differ in small ways, so arguments are put in by the name that
the descriptor's schema has for them: scales are numbers at Enflame and tensors at MetaX, and each has its own extras.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from datong.backends.torch.binding import Batch, Binding, Context, Terms
from datong.backends.torch.fused.common import (
    FLOATS,
    HALVES,
    Values,
    cache_is,
    cos_sin,
    dtype_is,
    first,
    half,
    head_dims,
    head_is,
    in_place,
    joined,
    norm_weight,
    number,
    own,
    plain,
    silu_only,
    whole,
    width,
)
from datong.spec.program import Node

# What every call gives to parameters that say how the cache is quantised or sparse: not at all.
CONSTANTS: dict[str, Any] = {
    "alibi_slopes": None,
    "kv_cache_dtype": "auto",
    "k_scale": 1.0,
    "v_scale": 1.0,
    "k_zero": 0.0,
    "v_zero": 0.0,
    "tp_rank": 0,
    "blocksparse_local_blocks": 0,
    "blocksparse_vert_stride": 0,
    "blocksparse_block_size": 64,
    "blocksparse_head_sliding_step": 0,
    "out_scales": None,
    "query_scales": None,
}
# vllm-gcu paged_attn.py get_supported_head_sizes; mcoplib builds upstream's kernels for the same
HEAD_SIZES = (32, 64, 80, 96, 112, 120, 128, 192, 256)


def _refuse_floats(node: Node, values: Values, terms: Terms) -> str | None:
    return dtype_is(terms, FLOATS)


def _refuse_glu(node: Node, values: Values, terms: Terms) -> str | None:
    return first(dtype_is(terms, FLOATS), silu_only(node))


def _rms_norm(node: Node, context: Context) -> Callable[..., Tensor]:
    weight, eps, operator = norm_weight(node, context, node.inputs[1]), number(node, "eps"), context.operator

    def call(x: Tensor) -> Tensor:
        y = torch.empty_like(x, memory_format=torch.contiguous_format)
        if x.shape[0]:
            operator(y.view(-1, len(weight)), x.contiguous().view(-1, len(weight)), weight, eps)
        return y

    return call


def _refuse_add_rms_norm(node: Node, values: Values, terms: Terms) -> str | None:
    return first(dtype_is(terms, FLOATS), in_place(node, terms, 2))


def _add_rms_norm(node: Node, context: Context) -> Callable[..., tuple[Tensor, Tensor]]:
    """In place: the residual becomes the sum, the other one the norm of it."""
    weight, eps, operator = norm_weight(node, context, node.inputs[2]), number(node, "eps"), context.operator

    def call(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        y, total = own(a, node.inputs[0], context), own(b, node.inputs[1], context)
        if a.shape[0]:
            operator(y, total, weight, eps)
        return total, y

    return call


def _rope(node: Node, context: Context) -> Callable[..., Tensor]:
    """In place, queries and keys in one call: ours has one of them, so a row of one head stands in for the other."""
    heads, operator = whole(node, "num_heads"), context.operator
    dim, neox = width(context.values, node.inputs[0]) // heads, not whole(node, "interleaved")

    def call(x: Tensor, rows: Tensor, table: Tensor) -> Tensor:
        y = own(x, node.inputs[0], context)
        if x.shape[0]:
            operator(rows, y, y.new_empty((x.shape[0], dim)), dim, table, neox)
        return y

    return call


def _glu(node: Node, context: Context) -> Callable[..., Tensor]:
    operator = context.operator

    def call(gate: Tensor, up: Tensor | None = None) -> Tensor:
        x = joined(gate, up)
        y = half(x)
        if x.shape[0]:
            operator(y, x)
        return y

    return call


# ---- attention over the paged cache --------------------------------------------------------------------------------


class _Call:
    """A call with arguments by the names of the descriptor's schema."""

    def __init__(self, name: str, context: Context) -> None:
        schema = torch._C.parse_schema(next(row.schema for row in context.chip.stack.fused if row.name == name))
        self._names = [argument.name for argument in schema.arguments]
        self._tensors = [a.name for a in schema.arguments if a.name in CONSTANTS and str(a.type) == "Tensor"]
        self._constants: dict[str, Any] | None = None
        self._operator = context.operator

    def __call__(self, **given: Any) -> None:
        """Call with these and the constants."""
        if self._constants is None:  # a scale that is a tensor lies beside the cache
            like = given["key_cache"]
            scales = {n: torch.full((1,), CONSTANTS[n], dtype=torch.float32, device=like.device) for n in self._tensors}
            self._constants = {**CONSTANTS, **scales}
        given = {**self._constants, **given}
        self._operator(*[given[name] for name in self._names])


def _refuse_write(node: Node, values: Values, terms: Terms) -> str | None:
    return first(dtype_is(terms, FLOATS), cache_is(terms, "metax_paged"), _dim_by_x(node, values, terms))


def _refuse_write_flash(node: Node, values: Values, terms: Terms) -> str | None:
    return first(dtype_is(terms, FLOATS), cache_is(terms, "nhd"), head_is(node, values))


def _write(name: str, node: Node, context: Context) -> Callable[..., None]:
    operator = _Call(name, context)

    def call(key: Tensor, value: Tensor, keys: Tensor, values: Tensor, batch: Batch) -> None:
        operator(
            key=key.contiguous(),
            value=value.contiguous(),
            key_cache=keys,
            value_cache=values,
            slot_mapping=batch.slots,
        )

    return call


def _refuse_decode(node: Node, values: Values, terms: Terms) -> str | None:
    dim = head_dims(node, values)[0]
    size = None if dim in HEAD_SIZES else f"takes heads of {', '.join(map(str, HEAD_SIZES))} channels, not {dim}"
    reasons = (dtype_is(terms, HALVES), cache_is(terms, "metax_paged"), head_is(node, values), size, plain(node))
    return first(*reasons)


def _decode(name: str, node: Node, context: Context) -> Callable[..., Tensor]:
    operator, kv_heads, scale = _Call(name, context), whole(node, "num_kv_heads"), number(node, "scale")

    def call(query: Tensor, keys: Tensor, values: Tensor, batch: Batch) -> Tensor:
        y = torch.empty_like(query, memory_format=torch.contiguous_format)
        operator(
            out=y,
            query=query.contiguous(),
            key_cache=keys,
            value_cache=values,
            num_kv_heads=kv_heads,
            scale=scale,
            block_tables=batch.block_tables,
            seq_lens=batch.context_lens,
            block_size=context.block_size,
            max_seq_len=batch.max_context,
        )
        return y

    return call


def _dim_by_x(node: Node, values: Values, terms: Terms) -> str | None:
    x, (dim, _) = 16 // terms.dtype.itemsize, head_dims(node, values)
    return None if dim % x == 0 else f"takes head sizes in steps of {x} in this type, this one is {dim}"


_WRITE, _WRITE_FLASH = "torch.ops._C_cache_ops.reshape_and_cache", "torch.ops._C_cache_ops.reshape_and_cache_flash"
_DECODE = "torch.ops._C.paged_attention_v1"
BINDINGS = (
    ("torch.ops._C.rms_norm", Binding("rms_norm", _refuse_floats, _rms_norm)),
    ("torch.ops._C.fused_add_rms_norm", Binding("add_rms_norm", _refuse_add_rms_norm, _add_rms_norm)),
    ("torch.ops._C.rotary_embedding", Binding("rope", _refuse_floats, _rope, tables=cos_sin)),
    ("torch.ops._C.silu_and_mul", Binding("glu", _refuse_glu, _glu)),
    (_WRITE, Binding("attention.write", _refuse_write, partial(_write, _WRITE))),
    (_WRITE_FLASH, Binding("attention.write", _refuse_write_flash, partial(_write, _WRITE_FLASH))),
    (_DECODE, Binding("attention.decode", _refuse_decode, partial(_decode, _DECODE))),
)
