"""FlashAttention over a paged cache, as three vendors package it: Enflame, MetaX, Biren (BR2xx).

One idea, three signatures; arguments go by keyword, as the vendors' own vLLM plug-ins pass them. A window of W tokens
is `(W - 1, 0)`: so many keys to the left, none to the right. The cache is [blocks, block, heads, size] everywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from datong.backends.torch.binding import Batch, Binding, Context, Terms
from datong.backends.torch.fused.common import (
    HALVES,
    OncePerStep,
    Values,
    cache_is,
    dtype_is,
    first,
    head_is,
    number,
    plain,
    whole,
)
from datong.spec.program import Node

Prefill = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Batch], Tensor]
Decode = Callable[[Tensor, Tensor, Tensor, Batch], Tensor]


def _refuse(node: Node, values: Values, terms: Terms) -> str | None:
    """Head sizes: vllm-gcu takes upstream's, vLLM-metax any multiple of 8 up to 512; 256 fits both."""
    reasons = (
        dtype_is(terms, HALVES),
        cache_is(terms, "nhd", multiple=16),
        head_is(node, values, multiple=8, highest=256),
        plain(node, window=True, softcap=True),
    )
    return first(*reasons)


def _refuse_biren(node: Node, values: Values, terms: Terms) -> str | None:
    """suAttention: blocks of 128 tokens and nothing else; vllm-supa has no softcap to pass on."""
    reasons = (
        dtype_is(terms, HALVES),
        cache_is(terms, "nhd", lowest=128, highest=128),
        head_is(node, values, multiple=8, highest=256),
        plain(node, window=True),
    )
    return first(*reasons)


def _window(node: Node) -> list[int]:
    size = whole(node, "window")
    return [size - 1, 0] if size else [-1, -1]


def _common(node: Node) -> dict[str, Any]:
    return {"softmax_scale": number(node, "scale"), "window_size": _window(node)}


def _starts(query_starts: Tensor) -> Tensor:
    """SuAttention reads from the begin of the storage."""
    return query_starts.clone() if query_starts.storage_offset() else query_starts


# ---- Enflame: flash_attn.vllm_flash_attn ---------------------------------------------------------------------------


def _enflame(node: Node, context: Context) -> Decode:
    fixed = {**_common(node), "causal": True, "softcap": number(node, "softcap"), "fa_version": 2}
    operator = context.operator

    def call(query: Tensor, keys: Tensor, values: Tensor, batch: Batch) -> Tensor:
        y = torch.empty_like(query, memory_format=torch.contiguous_format)
        operator(
            q=query.contiguous(),
            k=keys,
            v=values,
            out=y,
            cu_seqlens_q=batch.query_starts,
            max_seqlen_q=batch.max_new,
            seqused_k=batch.context_lens,
            max_seqlen_k=batch.max_context,
            block_table=batch.block_tables,
            **fixed,
        )
        return y

    return call


# ---- MetaX: flash_attn ---------------------------------------------------------------------------------------------


def _metax_prefill(node: Node, context: Context) -> Prefill:
    fixed = {**_common(node), "causal": True, "softcap": number(node, "softcap")}
    operator = context.operator
    ends = OncePerStep(lambda batch: functional.pad(batch.context_lens.cumsum(0, dtype=torch.int32), (1, 0)))

    def call(query: Tensor, key: Tensor, value: Tensor, keys: Tensor, values: Tensor, batch: Batch) -> Tensor:
        y: Tensor = operator(
            q=query.contiguous(),
            k=keys,
            v=values,
            cu_seqlens_q=batch.query_starts,
            cu_seqlens_k=ends(batch),
            max_seqlen_q=batch.max_new,
            max_seqlen_k=batch.max_context,
            block_table=batch.block_tables,
            **fixed,
        )
        return y

    return call


def _metax_decode(node: Node, context: Context) -> Decode:
    fixed = {**_common(node), "causal": True, "softcap": number(node, "softcap")}
    operator = context.operator

    def call(query: Tensor, keys: Tensor, values: Tensor, batch: Batch) -> Tensor:
        y: Tensor = operator(
            q=query.contiguous().unsqueeze(1),
            k_cache=keys,
            v_cache=values,
            cache_seqlens=batch.context_lens,
            block_table=batch.block_tables,
            **fixed,
        )
        return y.squeeze(1)

    return call


# ---- Biren: suattention --------------------------------------------------------------------------------------------


def _biren(node: Node, context: Context) -> Decode:
    fixed, operator = _common(node), context.operator

    def call(query: Tensor, keys: Tensor, values: Tensor, batch: Batch) -> Tensor:
        y: Tensor = operator(
            query.contiguous(),
            keys,
            values,
            cu_seqlens_q=_starts(batch.query_starts),
            max_seqlen_q=batch.max_new,
            cache_seqlens=batch.context_lens,
            causal=batch.max_new != 1,  # as vllm-supa: one new token sees the whole cache
            page_table=batch.block_tables,
            return_softmax_lse=True,
            **fixed,
        )[0]
        return y

    return call


def _prefill(make: Callable[[Node, Context], Decode]) -> Callable[[Node, Context], Prefill]:
    """The same call for prefill: new keys are in the cache already."""

    def made(node: Node, context: Context) -> Prefill:
        decode = make(node, context)
        return lambda query, key, value, keys, values, batch: decode(query, keys, values, batch)

    return made


_ENFLAME, _BIREN = "flash_attn.vllm_flash_attn.flash_attn_varlen_func", "suattention.flash_attn_with_kvcache"
BINDINGS = (
    (_ENFLAME, Binding("attention.prefill", _refuse, _prefill(_enflame))),
    (_ENFLAME, Binding("attention.decode", _refuse, _enflame)),
    ("flash_attn.flash_attn_varlen_func", Binding("attention.prefill", _refuse, _metax_prefill)),
    ("flash_attn.flash_attn_with_kvcache", Binding("attention.decode", _refuse, _metax_decode)),
    (_BIREN, Binding("attention.prefill", _refuse_biren, _prefill(_biren))),
    (_BIREN, Binding("attention.decode", _refuse_biren, _biren)),
)
