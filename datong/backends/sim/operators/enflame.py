"""Enflame: vllm-gcu's extension, and the FlashAttention that it calls. Source: vllm_gcu/v1/attention/flash_attn.py."""

from __future__ import annotations

import itertools
from typing import Any

from torch import Tensor

from datong.backends.sim.operators import vllm
from datong.backends.sim.rules import require

FLASH = "flash_attn.vllm_flash_attn.flash_attn_varlen_func"
SOURCE = "A: vllm-gcu vllm_gcu/v1/attention/flash_attn.py"


def flash_attn_varlen_func(
    *, q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, seqused_k: Tensor | None, out: Tensor | None, **rest: Any
) -> Tensor:
    """Queries of several sequences over a paged cache."""
    require(seqused_k is not None, FLASH, "should have lengths of keys", "it has none", SOURCE)
    assert seqused_k is not None
    require(rest["alibi_slopes"] is None, FLASH, "should have no alibi here", "it has", "the simulation")
    starts, lens = cu_seqlens_q.tolist(), seqused_k.tolist()
    longest = max((b - a for a, b in itertools.pairwise(starts)), default=0)
    bounds = rest["max_seqlen_q"] >= longest and rest["max_seqlen_k"] >= max(lens, default=0)
    require(bounds, FLASH, "should have bounds of the longest sequences", "they are less", SOURCE)
    y = vllm.varlen_paged(
        FLASH, SOURCE, q, k, v, starts, lens, rest["block_table"],
        scale=rest["softmax_scale"], causal=rest["causal"], window=rest["window_size"], softcap=rest["softcap"],
    )  # fmt: skip
    if out is None:
        return y
    out.copy_(y)
    return out


OPERATORS = {**vllm.OPERATORS, FLASH: flash_attn_varlen_func}
