"""MetaX: mcoplib, and the FlashAttention of MACA. Source: vLLM-metax v1/attention/backends/flash_attn.py."""

from __future__ import annotations

import itertools
from typing import Any

from torch import Tensor

from datong.backends.sim.operators import vllm
from datong.backends.sim.rules import require

VARLEN, CACHED = "flash_attn.flash_attn_varlen_func", "flash_attn.flash_attn_with_kvcache"
SOURCE = "A: vLLM-metax vllm_metax/v1/attention/backends/flash_attn.py"


def flash_attn_varlen_func(
    *, q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, **rest: Any
) -> Tensor:
    """Queries of several sequences over a paged cache."""
    plain = rest["alibi_slopes"] is None and not rest["dropout_p"] and not rest["return_attn_probs"]
    require(plain, VARLEN, "should have neither alibi nor dropout here", "it has", "the simulation")
    starts, ends = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
    lens = [b - a for a, b in itertools.pairwise(ends)]
    longest = max((b - a for a, b in itertools.pairwise(starts)), default=0)
    bounds = rest["max_seqlen_q"] >= longest and rest["max_seqlen_k"] >= max(lens, default=0)
    require(bounds, VARLEN, "should have bounds of the longest sequences", "they are less", SOURCE)
    return vllm.varlen_paged(
        VARLEN, SOURCE, q, k, v, starts, lens, rest["block_table"],
        scale=rest["softmax_scale"], causal=rest["causal"], window=rest["window_size"], softcap=rest["softcap"],
    )  # fmt: skip


def flash_attn_with_kvcache(
    *, q: Tensor, k_cache: Tensor, v_cache: Tensor, cache_seqlens: Tensor | None, **rest: Any
) -> Tensor:
    """The same number of queries for every sequence, [S, t, heads, D]."""
    plain = all(
        rest[name] is None for name in ("k", "v", "rotary_cos", "rotary_sin", "cache_batch_idx", "alibi_slopes")
    )
    require(plain, CACHED, "should have queries only here", "it has more", "the simulation")
    require(cache_seqlens is not None, CACHED, "should have lengths of keys", "it has none", SOURCE)
    assert cache_seqlens is not None
    starts = list(range(0, q.shape[0] * q.shape[1] + 1, q.shape[1]))
    y = vllm.varlen_paged(
        CACHED, SOURCE, q.flatten(0, 1), k_cache, v_cache, starts, cache_seqlens.tolist(), rest["block_table"],
        scale=rest["softmax_scale"], causal=rest["causal"], window=rest["window_size"], softcap=rest["softcap"],
    )  # fmt: skip
    return y.view(q.shape)


OPERATORS = {**vllm.OPERATORS, VARLEN: flash_attn_varlen_func, CACHED: flash_attn_with_kvcache}
