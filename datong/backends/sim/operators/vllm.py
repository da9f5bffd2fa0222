"""Operators with the signatures of vLLM's extension, as Enflame, MetaX and Biren (BR2xx) register them.

Results go into the first tensor, or into the inputs. Sources: vllm-gcu csrc/torch_bindings.cpp and
vllm_gcu/attention/ops/paged_attn.py; mcoplib op/vllm/torch_bindings.cpp and mcoplib_ops.md; vllm-supa
csrc/libtorch_stable/torch_bindings.cpp.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
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
from datong.backends.sim.rules import require, require_block_size

SOURCE = "A: torch_bindings.cpp of the vendor's vLLM plug-in"
PAGED = "A: mcoplib_ops.md, vllm_gcu paged_attn.py"
FLOATS = (torch.float16, torch.bfloat16, torch.float32)
HALVES = (torch.float16, torch.bfloat16)


def rms_norm(*, result: Tensor, input: Tensor, weight: Tensor, epsilon: float) -> None:
    """Result = norm of input."""
    check_types("torch.ops._C.rms_norm", FLOATS, SOURCE, input=input, result=result, weight=weight)
    result.copy_(rms(input, weight, epsilon)[0])


def fused_add_rms_norm(*, input: Tensor, residual: Tensor, weight: Tensor, epsilon: float) -> None:
    """Residual += input; input = norm of it."""
    check_types("torch.ops._C.fused_add_rms_norm", FLOATS, SOURCE, input=input, residual=residual, weight=weight)
    total = input.float() + residual.float()
    residual.copy_(total)
    input.copy_(rms(total, weight, epsilon)[0])


def rotary_embedding(
    *, positions: Tensor, query: Tensor, key: Tensor, head_size: int, cos_sin_cache: Tensor, is_neox: bool, **rest: Any
) -> None:
    """Rotates the heads of query and key in place; cos_sin_cache [positions, r] holds cosines, then sines."""
    name = "torch.ops._C.rotary_embedding"
    check_types(name, FLOATS, SOURCE, query=query, key=key, cos_sin_cache=cos_sin_cache)
    whole = positions.dtype in (torch.int32, torch.int64)
    require(whole, name, "should have positions of a whole type", f"they are {positions.dtype}", SOURCE)
    plain = not rest.get("rope_dim_offset") and not rest.get("inverse")
    require(plain, name, "should have no offset and no inverse here", f"it has {rest}", "the simulation")
    cos, sin = cos_sin_cache[positions.long()].chunk(2, -1)
    for x in (query, key):
        x.copy_(rotate(x.reshape(x.shape[0], -1, head_size), cos, sin, neox=is_neox).view(x.shape))


def silu_and_mul(*, result: Tensor, input: Tensor) -> None:
    """Result = swish of the first half of input, times the second."""
    check_types("torch.ops._C.silu_and_mul", FLOATS, SOURCE, input=input, result=result)
    result.copy_(silu_mul(input))


# ---- the paged cache -----------------------------------------------------------------------------------------------


def _check_scales(name: str, rest: dict[str, Any]) -> None:
    """No quantised cache: type auto, scales of one, zeros of zero."""
    auto = rest.get("kv_cache_dtype") == "auto"
    require(auto, name, "should have kv_cache_dtype auto", f"it is {rest.get('kv_cache_dtype')}", SOURCE)
    for scale in ("k_scale", "v_scale"):
        value = rest[scale]
        number = float(value) if not isinstance(value, Tensor) or value.numel() == 1 else 0.0
        require(number == 1.0, name, f"should have a {scale} of one for such a cache", f"it is {value}", SOURCE)


def _check_x(name: str, key_cache: Tensor, value_cache: Tensor) -> None:
    """Key [blocks, heads, D/x, block, x], value [blocks, heads, D, block], x of 16 bytes."""
    x, shapes = 16 // key_cache.element_size(), f"they are {list(key_cache.shape)} and {list(value_cache.shape)}"
    fits = key_cache.dim() == 5 and value_cache.dim() == 4 and key_cache.shape[4] == x
    fits = fits and key_cache.shape[3] == value_cache.shape[3] and key_cache.shape[1] == value_cache.shape[1]
    rule = f"should have caches [blocks, heads, D/{x}, block, {x}] and [blocks, heads, D, block]"
    require(fits, name, rule, shapes, PAGED)
    require_block_size(name, key_cache.shape[3])


def reshape_and_cache(
    *, key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slot_mapping: Tensor, **rest: Any
) -> None:
    """Key [tokens, heads, D] into [blocks, heads, D/x, block, x], value into [blocks, heads, D, block]."""
    name = "torch.ops._C_cache_ops.reshape_and_cache"
    check_types(name, FLOATS, SOURCE, key=key, value=value, key_cache=key_cache, value_cache=value_cache)
    _check_x(name, key_cache, value_cache)
    _check_scales(name, rest)
    size = key_cache.shape[3]
    check_slots(name, slot_mapping, key_cache.shape[0], size, SOURCE)
    for token, slot in enumerate(slot_mapping.tolist()):
        block, place = divmod(slot, size)
        key_cache[block, :, :, place, :] = key[token].view(key.shape[1], -1, key_cache.shape[4])
        value_cache[block, :, :, place] = value[token]


def reshape_and_cache_flash(
    *, key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slot_mapping: Tensor, **rest: Any
) -> None:
    """Key and value [tokens, heads, D] into [blocks, block, heads, D]."""
    name = "torch.ops._C_cache_ops.reshape_and_cache_flash"
    check_types(name, FLOATS, SOURCE, key=key, value=value, key_cache=key_cache, value_cache=value_cache)
    _check_scales(name, rest)
    write_nhd(name, key, value, key_cache, value_cache, slot_mapping)


def write_nhd(name: str, key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slots: Tensor) -> None:
    """Tokens into [blocks, block, heads, D]."""
    shapes = f"they are {list(key.shape)} and {list(key_cache.shape)}"
    fits = key_cache.dim() == 4 and key.shape[1:] == key_cache.shape[2:] and value.shape[1:] == value_cache.shape[2:]
    require(fits, name, "should have [tokens, heads, D] and [blocks, block, heads, D]", shapes, SOURCE)
    require_block_size(name, key_cache.shape[1])
    check_slots(name, slots, key_cache.shape[0], key_cache.shape[1], SOURCE)
    for token, slot in enumerate(slots.tolist()):
        block, place = divmod(slot, key_cache.shape[1])
        key_cache[block, place], value_cache[block, place] = key[token], value[token]


def paged_attention_v1(
    *,
    out: Tensor,
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    num_kv_heads: int,
    scale: float,
    block_tables: Tensor,
    seq_lens: Tensor,
    block_size: int,
    max_seq_len: int,
    alibi_slopes: Tensor | None,
    **rest: Any,
) -> None:
    """One query per sequence [S, heads, D] over its cache."""
    name = "torch.ops._C.paged_attention_v1"
    check_types(name, HALVES, PAGED, query=query, key_cache=key_cache, value_cache=value_cache, out=out)
    _check_x(name, key_cache, value_cache)
    _check_scales(name, rest)
    plain = alibi_slopes is None and rest["blocksparse_vert_stride"] <= 1
    require(plain, name, "should have neither alibi nor sparse blocks here", "it has", "the simulation")
    counts = num_kv_heads == key_cache.shape[1] and block_size == key_cache.shape[3]
    came = f"num_kv_heads {num_kv_heads}, block_size {block_size}, cache {list(key_cache.shape)}"
    require(counts, name, "should have heads and block size of the cache", came, PAGED)
    lens = seq_lens.tolist()
    require(max_seq_len >= max(lens, default=0), name, "should have max_seq_len of the longest", "it is less", PAGED)
    check_tables(name, block_tables, lens, key_cache.shape[0], block_size, PAGED)
    for s, length in enumerate(lens):
        k = rows(key_cache, block_tables[s], length, "keys_by_x")
        v = rows(value_cache, block_tables[s], length, "values_by_channel")
        out[s] = attend(query[s : s + 1], k, v, scale, causal=True)[0]


# ---- flash_attn as the vendors package it ----------------------------------------------------------------------------


def varlen_paged(
    name: str, source: str, q: Tensor, keys: Tensor, values: Tensor, starts: list[int], lens: list[int],
    table: Tensor | None, *, scale: float | None, causal: bool, window: list[int] | None, softcap: float = 0.0,
) -> Tensor:  # fmt: skip
    """Queries [N, heads, D] of several sequences, each over its own paged cache [blocks, block, heads, D]."""
    check_types(name, HALVES, source, q=q, k=keys, v=values)
    require(table is not None, name, "should have a block table here", "it has none", "the simulation")
    assert table is not None
    came = f"q is {list(q.shape)}, the cache {list(keys.shape)}"
    fits = q.dim() == 3 and keys.dim() == 4 and keys.shape == values.shape and q.shape[2] == keys.shape[3]
    require(fits, name, "should have q [tokens, heads, D] and a cache [blocks, block, heads, D]", came, source)
    require(table.dtype is torch.int32, name, "should have an int32 block table", f"it is {table.dtype}", source)
    require_block_size(name, keys.shape[1])
    check_tables(name, table, lens, keys.shape[0], keys.shape[1], source)
    left, right = window or (-1, -1)
    require(right in (-1, 0), name, "should have a window of 0 or -1 to the right", f"it is {right}", "the simulation")
    ends = starts[-1] == len(q) and len(starts) == len(lens) + 1
    require(ends, name, "should have lengths of queries that add up to q", f"{starts} for {len(q)} tokens", source)
    y = torch.zeros((len(q), q.shape[1], values.shape[3]), dtype=q.dtype)
    scale = q.shape[2] ** -0.5 if scale is None else scale
    for s, (start, stop) in enumerate(itertools.pairwise(starts)):
        k, v = (rows(cache, table[s], lens[s], "nhd") for cache in (keys, values))
        seen = causal or right == 0
        y[start:stop] = attend(q[start:stop], k, v, scale, causal=seen, left=left, softcap=softcap)
    return y


OPERATORS: dict[str, Callable[..., Any]] = {
    "torch.ops._C.rms_norm": rms_norm,
    "torch.ops._C.fused_add_rms_norm": fused_add_rms_norm,
    "torch.ops._C.rotary_embedding": rotary_embedding,
    "torch.ops._C.silu_and_mul": silu_and_mul,
    "torch.ops._C_cache_ops.reshape_and_cache": reshape_and_cache,
    "torch.ops._C_cache_ops.reshape_and_cache_flash": reshape_and_cache_flash,
    "torch.ops._C.paged_attention_v1": paged_attention_v1,
}
