"""Iluvatar CoreX: functions of ixformer. Source: the docstrings and references of that package's Python files."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from datong.backends.sim.operators.formulas import (
    attend,
    check_slots,
    check_tables,
    check_types,
    rms,
    rotate,
    rows,
    silu_mul,
)
from datong.backends.sim.operators.vllm import varlen_paged
from datong.backends.sim.rules import require, require_block_size

SOURCE = "B: ixformer/inference/functions (copied into public repositories)"
FLASH = "ixformer.contrib.vllm_flash_attn.flash_attn_varlen_func"
FLOATS = (torch.float16, torch.bfloat16, torch.float32)
HALVES = (torch.float16, torch.bfloat16)
_FUNCTIONS = "ixformer.inference.functions."


def rms_norm(*, input: Tensor, weight: Tensor, eps: float, output: Tensor | None) -> Tensor:
    """Norm over the last dim."""
    check_types(_FUNCTIONS + "rms_norm", FLOATS, SOURCE, input=input, weight=weight)
    return _into(output, rms(input, weight, eps)[0])


def residual_rms_norm(
    *, input: Tensor, weight: Tensor, eps: float, residual_alpha: float, residual: Tensor | None,
    residual_bias: Tensor | None, output: Tensor | None, residual_output: Tensor | None, is_post: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Norm of input + residual * alpha, and that sum; without outputs they replace input and residual."""
    name = _FUNCTIONS + "residual_rms_norm"
    require(residual is not None, name, "should have a residual here", "it has none", "the simulation")
    assert residual is not None
    plain = residual_bias is None and not is_post
    require(plain, name, "should have no bias, and return the sum", "it does otherwise", "the simulation")
    check_types(name, FLOATS, SOURCE, input=input, residual=residual, weight=weight)
    total = input.float() + residual.float() * residual_alpha
    y = rms(total, weight, eps)[0].to(input.dtype)
    return _into(input if output is None else output, y), _into(
        residual if residual_output is None else residual_output, total.to(input.dtype)
    )


def vllm_rotary_embedding(
    *, positions: Tensor, query: Tensor, key: Tensor, head_size: int, cos_sin_cache: Tensor, is_neox_style: bool
) -> None:
    """Rotates whole heads of query and key in place."""
    name = _FUNCTIONS + "vllm_rotary_embedding"
    check_types(name, FLOATS, SOURCE, query=query, key=key, cos_sin_cache=cos_sin_cache)
    wide = cos_sin_cache.shape[1] == head_size
    came = f"it has {cos_sin_cache.shape[1]} for heads of {head_size}"
    require(wide, name, "should have cosines and sines for a whole head", came, SOURCE)
    long = positions.dtype is torch.int64
    require(long, name, "should have positions of int64", f"they are {positions.dtype}", SOURCE)
    cos, sin = cos_sin_cache[positions].chunk(2, -1)
    for x in (query, key):
        x.copy_(rotate(x.reshape(x.shape[0], -1, head_size), cos, sin, neox=is_neox_style).view(x.shape))


def silu_and_mul(*, input: Tensor, output: Tensor | None) -> Tensor:
    """Swish of the first half, times the second."""
    check_types(_FUNCTIONS + "silu_and_mul", FLOATS, SOURCE, input=input)
    return _into(output, silu_mul(input))


def vllm_reshape_and_cache(
    *, key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slot_mapping: Tensor
) -> None:
    """Key and value [tokens, heads, D] into [blocks, heads, block, D]."""
    name = _FUNCTIONS + "vllm_reshape_and_cache"
    check_types(name, FLOATS, SOURCE, key=key, value=value, key_cache=key_cache, value_cache=value_cache)
    shapes = f"they are {list(key.shape)} and {list(key_cache.shape)}"
    fits = key_cache.dim() == 4 and key.shape[1:] == (key_cache.shape[1], key_cache.shape[3])
    require(fits, name, "should have [tokens, heads, D] and [blocks, heads, block, D]", shapes, SOURCE)
    long = slot_mapping.dtype is torch.int64
    require(long, name, "should have slots of int64", f"they are {slot_mapping.dtype}", SOURCE)
    size = key_cache.shape[2]
    require_block_size(name, size)
    check_slots(name, slot_mapping, key_cache.shape[0], size, SOURCE)
    for token, slot in enumerate(slot_mapping.tolist()):
        block, place = divmod(slot, size)
        key_cache[block, :, place], value_cache[block, :, place] = key[token], value[token]


def vllm_paged_attention(
    *,
    output: Tensor,
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    num_kv_heads: int,
    scale: float,
    block_tables: Tensor,
    context_lens: Tensor,
    block_size: int,
    max_context_len: int,
    **rest: Any,
) -> Tensor:
    """One query per sequence over a cache [blocks, heads, block, D]; window_left keys before its own place."""
    name = _FUNCTIONS + "vllm_paged_attention"
    check_types(name, HALVES, SOURCE, query=query, key_cache=key_cache, value_cache=value_cache, output=output)
    counts = key_cache.dim() == 4 and num_kv_heads == key_cache.shape[1] and block_size == key_cache.shape[2]
    came = f"num_kv_heads {num_kv_heads}, block_size {block_size}, cache {list(key_cache.shape)}"
    require(counts, name, "should have heads and block size of the cache [blocks, heads, block, D]", came, SOURCE)
    require_block_size(name, block_size)
    plain = rest["alibi_slopes"] is None and not rest["softcap"]
    require(plain, name, "should have neither alibi nor softcap here", "it has", "the simulation")
    lens = context_lens.tolist()
    longest = max(lens, default=0)
    require(max_context_len >= longest, name, "should have max_context_len of the longest", "it is less", SOURCE)
    check_tables(name, block_tables, lens, key_cache.shape[0], block_size, SOURCE)
    for s, length in enumerate(lens):
        k, v = (rows(cache, block_tables[s], length, "hnd") for cache in (key_cache, value_cache))
        output[s] = attend(query[s : s + 1], k, v, scale, causal=True, left=rest["window_left"])[0]
    return output


def flash_attn_varlen_func(
    *, q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, **rest: Any
) -> Tensor:
    """Queries of several sequences over a paged cache [blocks, heads, block, D]."""
    starts, ends = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
    lens = [b - a for a, b in itertools.pairwise(ends)]
    keys, values = k.transpose(1, 2), v.transpose(1, 2)
    return varlen_paged(
        FLASH, SOURCE, q, keys, values, starts, lens, rest["block_table"],
        scale=rest["softmax_scale"], causal=rest["causal"], window=None,
    )  # fmt: skip


def _into(output: Tensor | None, result: Tensor) -> Tensor:
    return result if output is None else output.copy_(result)


OPERATORS = {
    _FUNCTIONS + "rms_norm": rms_norm,
    _FUNCTIONS + "residual_rms_norm": residual_rms_norm,
    _FUNCTIONS + "vllm_rotary_embedding": vllm_rotary_embedding,
    _FUNCTIONS + "silu_and_mul": silu_and_mul,
    _FUNCTIONS + "vllm_reshape_and_cache": vllm_reshape_and_cache,
    _FUNCTIONS + "vllm_paged_attention": vllm_paged_attention,
    FLASH: flash_attn_varlen_func,
}
