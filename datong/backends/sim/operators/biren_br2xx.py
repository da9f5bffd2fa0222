"""Biren BR2xx: vllm-supa's extension and suAttention. Source: vllm_supa/v1/attention/ops/flash_attn.py, platform.py."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from datong.backends.sim.operators import vllm
from datong.backends.sim.rules import require

CACHED = "suattention.flash_attn_with_kvcache"
SOURCE = "A: vllm-supa vllm_supa/v1/attention/ops/flash_attn.py"


def flash_attn_with_kvcache(
    *, q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor | None, cache_seqlens: Tensor | None, **rest: Any
) -> tuple[Tensor, Tensor]:
    """Queries of several sequences [tokens, heads, D] over a cache in blocks of 128 tokens; and the log of sums."""
    require(cu_seqlens_q is not None, CACHED, "should have lengths of queries", "it has none", SOURCE)
    require(cache_seqlens is not None, CACHED, "should have lengths of keys", "it has none", SOURCE)
    assert cu_seqlens_q is not None and cache_seqlens is not None
    start = cu_seqlens_q.storage_offset()
    require(start == 0, CACHED, "should have lengths at the begin of their storage", f"they lie at {start}", SOURCE)
    scales = [name for name in ("q_descale", "k_descale", "v_descale") if rest[name] is not None]
    require(not scales, CACHED, "should have no scales for such a cache", f"it has {', '.join(scales)}", SOURCE)
    single = rest["max_seqlen_q"] == 1
    rule = "should not be causal with one query per sequence, and should be with several"
    require(rest["causal"] is not single, CACHED, rule, f"causal is {rest['causal']}", SOURCE)
    y = vllm.varlen_paged(
        CACHED, SOURCE, q, k, v, cu_seqlens_q.tolist(), cache_seqlens.tolist(), rest["page_table"],
        scale=rest["softmax_scale"], causal=rest["causal"], window=rest["window_size"],
    )  # fmt: skip
    return y, torch.zeros((q.shape[1], q.shape[0]))


OPERATORS = {**vllm.OPERATORS, CACHED: flash_attn_with_kvcache}
