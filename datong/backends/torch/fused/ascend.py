"""Huawei Ascend: operators of torch_npu.

Their schemas are the ones that the torch-npu wheel ships, and a test holds every call here against them
(conformance/vendor_schemas.py). Where the wheel's Python documentation and its schema differ, the schema counts: it
lists `layout` of npu_apply_rotary_pos_emb as positional, the text as keyword-only; npu_fused_infer_attention_score has
its keywords in another order. So optional arguments go by keyword.

Attention is one operator for prefill and decode. Lengths are numbers of the host (SymInt[]), which is why a step with
it cannot be captured without the vendor's graph_task_update. Queries go in as BSND: the documentation of 2.13 denies
page attention to TND, although vllm-ascend uses it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

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
    head_dims,
    head_is,
    joined,
    norm_weight,
    number,
    plain,
    silu_only,
    whole,
    whole_head,
    width,
)
from datong.spec.program import Node

MASK = 2048  # rows of the mask that sparse modes 2 to 4 want, whatever the lengths
RIGHT_DOWN_CAUSAL = 3  # sparse mode: the last query sees every key


def _refuse_floats(node: Node, values: Values, terms: Terms) -> str | None:
    return dtype_is(terms, FLOATS)


def _refuse_glu(node: Node, values: Values, terms: Terms) -> str | None:
    return first(dtype_is(terms, FLOATS), silu_only(node))


def _rms_norm(node: Node, context: Context) -> Callable[..., Tensor]:
    """Y, and 1/rms which we do not need."""
    weight, eps, operator = norm_weight(node, context, node.inputs[1]), number(node, "eps"), context.operator
    groups, dim = width(context.values, node.inputs[0]) // len(weight), len(weight)

    def call(x: Tensor) -> Tensor:
        if not x.shape[0]:
            return torch.empty_like(x)
        y: Tensor = operator(x.contiguous().view(-1, groups, dim), weight, epsilon=eps)[0]
        return y.view(x.shape)

    return call


def _add_rms_norm(node: Node, context: Context) -> Callable[..., tuple[Tensor, Tensor]]:
    """Y, 1/rms, sum."""
    weight, eps, operator = norm_weight(node, context, node.inputs[2]), number(node, "eps"), context.operator

    def call(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        if not a.shape[0]:
            return torch.empty_like(a), torch.empty_like(a)
        y, _, total = operator(a.contiguous(), b.contiguous(), weight, epsilon=eps)
        return total, y

    return call


def _refuse_rope(node: Node, values: Values, terms: Terms) -> str | None:
    heads, dim = whole(node, "num_heads"), 2 * width(values, node.inputs[1])
    small = (
        None if heads < 1000 and dim < 896 else f"takes under 1000 heads of under 896 channels, here {heads} x {dim}"
    )
    return first(dtype_is(terms, FLOATS), whole_head(node, values), small)


def _rope(node: Node, context: Context) -> Callable[..., Tensor]:
    """X as BSND with a batch of one; tables 1S1D."""
    heads, operator = whole(node, "num_heads"), context.operator
    mode = "interleave" if whole(node, "interleaved") else "half"

    def call(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        if not x.shape[0]:
            return torch.empty_like(x)
        rows = x.contiguous().view(1, x.shape[0], heads, -1)
        y: Tensor = operator(rows, cos, sin, rotary_mode=mode)
        return y.view(x.shape)

    return call


def _rope_tables(node: Node, terms: Terms) -> Callable[[Tensor, Tensor], tuple[Tensor, ...]]:
    """Cos and sin of every channel: [1, T, 1, r]."""
    interleaved = bool(whole(node, "interleaved"))

    def per_channel(table: Tensor) -> Tensor:
        both = torch.stack((table, table), 2).flatten(1) if interleaved else torch.cat((table, table), 1)
        return both.to(terms.dtype)[None, :, None]

    return lambda cos, sin: (per_channel(cos), per_channel(sin))


def _glu(node: Node, context: Context) -> Callable[..., Tensor]:
    """Silu of the first half times the second."""
    operator = context.operator

    def call(gate: Tensor, up: Tensor | None = None) -> Tensor:
        x = joined(gate, up)
        y: Tensor = operator(x, dim=-1) if x.shape[0] else half(x)
        return y

    return call


def _refuse_write(node: Node, values: Values, terms: Terms) -> str | None:
    return first(dtype_is(terms, FLOATS), cache_is(terms, "nhd"))


def _write(node: Node, context: Context) -> Callable[..., None]:
    """Scenario two of the documentation: tokens into [blocks, block, heads, size], which it calls `Norm`."""
    operator = context.operator

    def call(key: Tensor, value: Tensor, keys: Tensor, values: Tensor, batch: Batch) -> None:
        operator(key.contiguous(), value.contiguous(), keys, values, batch.slots, cache_mode="Norm")

    return call


def _refuse_attention(node: Node, values: Values, terms: Terms) -> str | None:
    heads, kv_heads, dim = whole(node, "num_heads"), whole(node, "num_kv_heads"), head_dims(node, values)[0]
    shape = None
    if heads > 256 or heads // kv_heads > 64:
        shape = f"takes up to 256 heads, 64 for each of keys, here {heads} and {kv_heads}"
    elif max(heads, kv_heads) * dim >= 65535:
        shape = f"takes rows of under 65535 channels, here {max(heads, kv_heads) * dim}"
    return first(dtype_is(terms, HALVES), head_is(node, values, multiple=16, highest=512), shape, plain(node))


def _refuse_prefill(node: Node, values: Values, terms: Terms) -> str | None:
    cache_reason = cache_is(terms, "nhd", multiple=128, lowest=128, highest=512)
    return first(_refuse_attention(node, values, terms), cache_reason)


def _refuse_decode(node: Node, values: Values, terms: Terms) -> str | None:
    cache_reason = cache_is(terms, "nhd", multiple=16, lowest=16, highest=512)
    return first(_refuse_attention(node, values, terms), cache_reason)


class _Attention:
    """Npu_fused_infer_attention_score over a paged cache."""

    def __init__(self, node: Node, context: Context) -> None:
        self._operator = context.operator
        self._fixed = {
            "num_heads": whole(node, "num_heads"),
            "num_key_value_heads": whole(node, "num_kv_heads"),
            "scale": number(node, "scale"),
            "block_size": context.block_size,
            "input_layout": "BSND",
        }

    def decode(self, query: Tensor, keys: Tensor, values: Tensor, batch: Batch) -> Tensor:
        """One new token per sequence: no mask, and lengths of queries do not count."""
        lens = list(batch.contexts)
        return self._one(query.unsqueeze(1), keys, values, batch.block_tables, lens).squeeze(1)

    def prefill(self, query: Tensor, key: Tensor, value: Tensor, keys: Tensor, values: Tensor, batch: Batch) -> Tensor:
        """Several: all sequences at once if they have the same number of them, else one after another."""
        if len(set(batch.new)) == 1:
            rows = query.view(batch.sequences, batch.new[0], *query.shape[1:])
            return self._several(rows, keys, values, batch.block_tables, list(batch.contexts)).view(query.shape)
        results, start = [], 0
        for s, (new, context) in enumerate(zip(batch.new, batch.contexts, strict=True)):
            rows, table = query[start : start + new][None], batch.block_tables[s : s + 1]
            call = self._several if new > 1 else self._one
            results.append(call(rows, keys, values, table, [context])[0])
            start += new
        return torch.cat(results)

    def _one(self, q: Tensor, keys: Tensor, values: Tensor, table: Tensor, lens: list[int]) -> Tensor:
        y: Tensor = self._operator(
            q.contiguous(),
            keys.flatten(2),
            values.flatten(2),
            actual_seq_lengths_kv=lens,
            block_table=table.contiguous(),
            **self._fixed,
        )[0]
        return y

    def _several(self, q: Tensor, keys: Tensor, values: Tensor, table: Tensor, lens: list[int]) -> Tensor:
        y: Tensor = self._operator(
            q.contiguous(),
            keys.flatten(2),
            values.flatten(2),
            atten_mask=_mask(q.device),
            actual_seq_lengths=[q.shape[1]] * q.shape[0],
            actual_seq_lengths_kv=lens,
            block_table=table.contiguous(),
            sparse_mode=RIGHT_DOWN_CAUSAL,
            **self._fixed,
        )[0]
        return y


@cache
def _mask(device: torch.device) -> Tensor:
    """[2048, 2048] bool: what is hidden, above the diagonal. Made on the host, once per device."""
    return torch.ones((MASK, MASK), dtype=torch.bool).triu(1).to(device)


BINDINGS = (
    ("torch_npu.npu_rms_norm", Binding("rms_norm", _refuse_floats, _rms_norm)),
    ("torch_npu.npu_add_rms_norm", Binding("add_rms_norm", _refuse_floats, _add_rms_norm)),
    ("torch_npu.npu_rotary_mul", Binding("rope", _refuse_rope, _rope, tables=_rope_tables)),
    ("torch_npu.npu_swiglu", Binding("glu", _refuse_glu, _glu)),
    ("torch_npu.npu_scatter_pa_kv_cache", Binding("attention.write", _refuse_write, _write)),
    (
        "torch_npu.npu_fused_infer_attention_score",
        Binding("attention.prefill", _refuse_prefill, lambda n, c: _Attention(n, c).prefill, capturable=False),
    ),
    (
        "torch_npu.npu_fused_infer_attention_score",
        Binding("attention.decode", _refuse_decode, lambda n, c: _Attention(n, c).decode, capturable=False),
    ),
)
