"""Huawei Ascend: operators of torch_npu, with the checks of the documentation that its wheel ships.

Source of all: PyPI torch-npu 2.13.0, torch_npu/_op_plugin_docs.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from datong.backends.sim.operators.formulas import (
    attend,
    check_dense,
    check_slots,
    check_tables,
    check_types,
    rms,
    rows,
    short,
    silu_mul,
)
from datong.backends.sim.rules import require, require_block_size

DOCS = "A: torch-npu 2.13.0 torch_npu/_op_plugin_docs.py"
FLOATS = (torch.float16, torch.bfloat16, torch.float32)
HALVES = (torch.float16, torch.bfloat16)
ATTENTION = "torch_npu.npu_fused_infer_attention_score"
MASK = (2048, 2048)


def npu_rms_norm(*, input: Tensor, gamma: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Norm over the dims of gamma, and 1/rms in f32."""
    name = "torch_npu.npu_rms_norm"
    check_types(name, FLOATS, DOCS, input=input, gamma=gamma)
    ranks = f"input has {input.dim()} dims"
    require(2 <= input.dim() <= 8, name, "should have an input of 2 to 8 dims", ranks, DOCS)
    fits = input.shape[-gamma.dim() :] == gamma.shape
    came = f"gamma is {list(gamma.shape)}, input {list(input.shape)}"
    require(fits, name, "should have gamma in the shape of the last dims of input", came, DOCS)
    y, inverse = rms(input.flatten(-gamma.dim()), gamma.flatten(), epsilon)
    return y.view(input.shape), inverse.view(*input.shape[: -gamma.dim()], *[1] * gamma.dim())


def npu_add_rms_norm(*, x1: Tensor, x2: Tensor, gamma: Tensor, epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
    """Norm of x1 + x2, 1/rms, and the sum."""
    check_types("torch_npu.npu_add_rms_norm", FLOATS, DOCS, x1=x1, x2=x2, gamma=gamma)
    total = x1 + x2
    y, inverse = rms(x1.float() + x2.float(), gamma, epsilon)
    return y.to(x1.dtype), inverse, total


def npu_rotary_mul(*, input: Tensor, r1: Tensor, r2: Tensor, rotary_mode: str, rotate: Tensor | None) -> Tensor:
    """R1 * input + r2 * swapped: `half` swaps halves of the last dim, `interleave` neighbours."""
    name = "torch_npu.npu_rotary_mul"
    check_types(name, FLOATS, DOCS, input=input, r1=r1, r2=r2)
    four = input.dim() == r1.dim() == r2.dim() == 4
    require(four, name, "should have tensors of 4 dims", f"they have {[t.dim() for t in (input, r1, r2)]}", DOCS)
    size = input.shape[3]
    require(size % 2 == 0 and size < 896, name, "should have an even last dim under 896", f"it is {size}", DOCS)
    most = max(input.shape[0], input.shape[2])
    require(most < 1000, name, "should have batch and heads under 1000", f"input is {list(input.shape)}", DOCS)
    spread = all(a in (1, b) for a, b in zip(r1.shape, input.shape, strict=True)) and r1.shape == r2.shape
    came = f"they are {list(r1.shape)} and {list(r2.shape)}, input {list(input.shape)}"
    require(spread, name, "should have r1 and r2 that spread over input", came, DOCS)
    x = input.float()
    if rotate is not None:
        swapped = x @ rotate.float()
    elif rotary_mode == "half":
        first, second = x.chunk(2, -1)
        swapped = torch.cat((-second, first), -1)
    else:
        require(
            rotary_mode == "interleave", name, "should have a mode half or interleave", f"it is {rotary_mode}", DOCS
        )
        swapped = torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)
    return (r1.float() * x + r2.float() * swapped).to(input.dtype)


def npu_swiglu(*, input: Tensor, dim: int) -> Tensor:
    """Swish(A) * B, where A and B are the halves of input along dim."""
    name = "torch_npu.npu_swiglu"
    check_types(name, FLOATS, DOCS, input=input)
    even = input.shape[dim] % 2 == 0
    require(even, name, "should have an even size along dim", f"it is {input.shape[dim]}", DOCS)
    return silu_mul(input.movedim(dim, -1)).movedim(-1, dim)


def npu_scatter_pa_kv_cache(
    *, key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slot_mapping: Tensor, **rest: Any
) -> None:
    """Scenario two: key [tokens, heads, size] into key_cache [blocks, block, heads, size] at the slots."""
    name = "torch_npu.npu_scatter_pa_kv_cache"
    check_types(name, FLOATS, DOCS, key=key, value=value, key_cache=key_cache, value_cache=value_cache)
    check_dense(name, DOCS, key=key, value=value, key_cache=key_cache, value_cache=value_cache)
    mode = rest.pop("cache_mode")
    rule = "should have cache_mode Norm for a cache that is not in the NZ format"
    require(mode in (None, "Norm"), name, rule, f"it is {mode}", DOCS)
    given = sorted(k for k, v in rest.items() if v is not None)
    require(not given, name, "should have no compression here", f"it has {', '.join(given)}", DOCS)
    whole = slot_mapping.dtype in (torch.int32, torch.int64)
    require(whole, name, "should have slots of int32 or int64", f"they are {short(slot_mapping.dtype)}", DOCS)
    require_block_size(name, key_cache.shape[1])
    check_slots(name, slot_mapping, key_cache.shape[0], key_cache.shape[1], DOCS)
    for new, cache in ((key, key_cache), (value, value_cache)):
        shapes = f"they are {list(new.shape)} and {list(cache.shape)}"
        fits = cache.dim() == 4 and new.dim() == 3 and new.shape[1:] == cache.shape[2:]
        require(fits, name, "should have [tokens, heads, size] and [blocks, block, heads, size]", shapes, DOCS)
        cache.view(-1, *cache.shape[2:])[slot_mapping.long()] = new


def npu_fused_infer_attention_score(
    *,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    atten_mask: Tensor | None,
    actual_seq_lengths: Sequence[int] | None,
    actual_seq_lengths_kv: Sequence[int] | None,
    block_table: Tensor | None,
    num_heads: int,
    scale: float,
    input_layout: str,
    num_key_value_heads: int,
    sparse_mode: int,
    block_size: int,
    softmax_lse_flag: bool,
    **rest: Any,
) -> tuple[Tensor, Tensor]:
    """Attention over a paged cache [blocks, block, heads * size], queries as BSND [B, S, heads, size]."""
    check_types(ATTENTION, HALVES, DOCS, query=query, key=key, value=value)
    check_dense(ATTENTION, DOCS, query=query, key=key, value=value)
    _check_unused(rest)
    paged = block_table is not None and actual_seq_lengths_kv is not None and input_layout == "BSND"
    came = f"layout {input_layout}, block_table {'yes' if block_table is not None else 'no'}"
    rule = "should be the paged call that this simulation has: BSND with block_table and actual_seq_lengths_kv"
    require(paged, ATTENTION, rule, came, "the simulation")
    assert block_table is not None and actual_seq_lengths_kv is not None
    heads = num_key_value_heads or num_heads
    batch, length = query.shape[:2]
    _check_heads(query, key, value, num_heads, heads)
    _check_blocks(length, block_size, key)
    lens = [int(n) for n in actual_seq_lengths_kv]
    several = length > 1
    new = [int(n) for n in actual_seq_lengths] if several and actual_seq_lengths else [length] * batch
    require(len(lens) == batch, ATTENTION, f"should have {batch} lengths of keys", f"it has {len(lens)}", DOCS)
    require(len(new) == batch, ATTENTION, f"should have {batch} lengths of queries", f"it has {len(new)}", DOCS)
    require(block_table.dtype is torch.int32, ATTENTION, "should have an int32 block table", "it is not", DOCS)
    check_tables(ATTENTION, block_table, lens, key.shape[0], block_size, DOCS)
    _check_mask(atten_mask, sparse_mode, several)
    y = torch.zeros_like(query)
    for b in range(batch):
        shape = (key.shape[0], block_size, heads, -1)
        k, v = (rows(cache.view(shape), block_table[b], lens[b], "nhd") for cache in (key, value))
        y[b, : new[b]] = attend(query[b, : new[b]], k, v, scale, causal=several and sparse_mode == 3)
    require(not softmax_lse_flag, ATTENTION, "should not ask for the log of sums", "it does", "the simulation")
    return y, torch.zeros(1)


def _check_unused(rest: dict[str, Any]) -> None:
    """Nothing that this simulation does not compute: quantisation, prefixes, rope parts, windows."""
    neutral = {"scale": 1.0, "pre_tokens": 2147483647, "next_tokens": 2147483647}
    used = sorted(name for name, value in rest.items() if value is not None and value != neutral.get(name, 0))
    came = f"it has {', '.join(used)}"
    require(not used, ATTENTION, "should have only the options that are simulated", came, "the simulation")


def _check_heads(query: Tensor, key: Tensor, value: Tensor, heads: int, kv_heads: int) -> None:
    size = query.shape[-1]
    came = f"query is {list(query.shape)}, key {list(key.shape)}, num_heads {heads}, num_key_value_heads {kv_heads}"
    shapes = query.shape[2] == heads and key.dim() == 3 and key.shape == value.shape and key.shape[2] == kv_heads * size
    require(shapes, ATTENTION, "should have query [B, S, N, D] and key, value [blocks, block, KV_N * D]", came, DOCS)
    ratio = heads % kv_heads == 0 and heads // kv_heads <= 64 and heads <= 256
    require(ratio, ATTENTION, "should have at most 256 heads, a multiple of and at most 64 times KV_N", came, DOCS)
    require(size % 16 == 0 and size <= 512, ATTENTION, "should have D up to 512 in steps of 16", came, DOCS)
    require(heads * size < 65535, ATTENTION, "should have N * D under 65535", came, DOCS)


def _check_blocks(length: int, block_size: int, key: Tensor) -> None:
    require_block_size(ATTENTION, block_size)
    same = key.shape[1] == block_size
    require(same, ATTENTION, "should have block_size of the cache", f"{block_size}, the cache has {key.shape[1]}", DOCS)
    step = 128 if length > 1 else 16
    fits = block_size % step == 0 and 0 < block_size <= 512
    rule = (
        f"should have blocks up to 512 tokens in steps of {step} for {'several queries' if length > 1 else 'one query'}"
    )
    require(fits, ATTENTION, rule, f"they have {block_size}", DOCS)


def _check_mask(mask: Tensor | None, sparse_mode: int, several: bool) -> None:
    known = sparse_mode in (0, 3)
    require(known, ATTENTION, "should have sparse_mode 0 or 3", f"it is {sparse_mode}", "the simulation")
    if not several or sparse_mode == 0:
        rule = "should have no mask with one query, or with sparse_mode 0 here"
        require(mask is None, ATTENTION, rule, "it has one", "the simulation")
        return
    rule = "should have a mask of 2048 x 2048, true above the diagonal, for sparse_mode 3"
    came = "it has none" if mask is None else f"it is {list(mask.shape)} of {short(mask.dtype)}"
    types = (torch.bool, torch.int8, torch.uint8)
    fits = mask is not None and tuple(mask.shape[-2:]) == MASK and mask.dtype in types
    require(fits, ATTENTION, rule, came, DOCS)
    assert mask is not None
    upper = torch.equal(mask.reshape(MASK).bool(), torch.ones(MASK, dtype=torch.bool).triu(1))
    require(upper, ATTENTION, rule, "it is true elsewhere", DOCS)


OPERATORS = {
    "torch_npu.npu_rms_norm": npu_rms_norm,
    "torch_npu.npu_add_rms_norm": npu_add_rms_norm,
    "torch_npu.npu_rotary_mul": npu_rotary_mul,
    "torch_npu.npu_swiglu": npu_swiglu,
    "torch_npu.npu_scatter_pa_kv_cache": npu_scatter_pa_kv_cache,
    ATTENTION: npu_fused_infer_attention_score,
}
