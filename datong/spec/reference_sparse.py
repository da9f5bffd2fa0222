"""The definition of attention over chosen keys, in NumPy: small heads choose, large ones attend to what was chosen.

Both keep keys in the paged cache: `index_cache` `[blocks, 1, bs, D]`, `key_cache` and `value_cache` as attention's.
A chosen block of `block` keys is a number: block b holds the keys b * block .. (b + 1) * block of its sequence.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from datong.spec.program import Step

Array = NDArray[Any]


def layer_norm(x: Array, weight: Array, bias: Array | None = None, *, eps: float) -> Array:
    """Norm of rows about their mean.  x [T, n], weight, bias [n] -> [T, n] f32.  Source: ONNX LayerNormalization-17."""
    z = x.astype(np.float64)
    z = z - z.mean(-1, keepdims=True)
    y = z / np.sqrt((z * z).mean(-1, keepdims=True) + eps) * weight
    return _f32(y if bias is None else y + bias)


def select_keys(
    q: Array,
    k: Array,
    weights: Array | None = None,
    *,
    step: Step,
    index_cache: Array,
    num_heads: int,
    groups: int,
    top_k: int,
    scale: float,
    layer: int = 0,
    block: int = 1,
    local: int = 0,
    kind: str = "plain",
) -> Array:
    """Write the new index keys, then say for each new token which keys its attention shall see.

        score[g, j] = sum over heads h of group g of weights[h] * act(scale * q[h] . key[j]);  act(z) = z or max(z, 0)
        block score = the largest score of its keys j <= p, p the token's own place; infinite for the `local` newest
        chosen      = the top_k blocks with the best scores, ascending; -1 where there are fewer. Ties: lowest number

    q [T, H*D], k [T, D], weights [T, H] f32 (absent: 1) -> chosen [T, G*top_k] f32. Head h is of group h // (H / G).
    index_cache [blocks, 1, bs, D] f32|f16|bf16, written in place; `layer` chose it.
    Source: HF `DeepseekV32Indexer` (relu, weights, one group, block 1), `MiniMaxM3VLIndexer` (plain, blocks, local).
    """
    q3, size, dim = q.reshape(q.shape[0], num_heads, -1), index_cache.shape[2], k.shape[1]
    chosen = np.full((q.shape[0], groups, top_k), -1.0, np.float32)
    for s, end in enumerate(step.context_lens.tolist()):
        start, stop = int(step.query_starts[s]), int(step.query_starts[s + 1])
        if start == stop:
            continue
        places = np.arange(end - (stop - start), end)
        table = step.block_tables[s]
        index_cache[table[places // size], 0, places % size] = k[start:stop]
        every = np.arange(end)
        keys = index_cache[table[every // size], 0, every % size].astype(np.float64).reshape(end, dim)
        score = q3[start:stop].astype(np.float64) @ keys.T * scale  # [t, H, end]
        score = np.maximum(score, 0) if kind == "relu" else score
        score = score if weights is None else score * weights[start:stop, :, None]
        score = score.reshape(stop - start, groups, num_heads // groups, end).sum(2)
        score[np.broadcast_to(every > places[:, None, None], score.shape)] = -np.inf
        count = -(-end // block)
        padded = np.pad(score, ((0, 0), (0, 0), (0, count * block - end)), constant_values=-np.inf)
        best = padded.reshape(*score.shape[:2], count, block).max(3)
        behind = places[:, None] // block - np.arange(count)
        best[np.broadcast_to(((behind >= 0) & (behind < local))[:, None], best.shape)] = np.inf
        order = np.argsort(-best, axis=2, kind="stable")[..., :top_k]
        found = np.where(np.take_along_axis(best, order, 2) > -np.inf, order, count)
        found.sort(axis=2)
        chosen[start:stop, :, : found.shape[2]] = np.where(found < count, found, -1)
    return chosen.reshape(q.shape[0], -1)


def sparse_attention(
    q: Array,
    k: Array,
    v: Array,
    chosen: Array,
    *,
    step: Step,
    key_cache: Array,
    value_cache: Array,
    num_heads: int,
    num_kv_heads: int,
    groups: int,
    scale: float,
    layer: int = 0,
    block: int = 1,
) -> Array:
    """Write the new keys and values into the paged cache, then attend to the chosen keys, causally.

    q [T, Hq*D], k [T, Hkv*D], v [T, Hkv*Dv], chosen [T, G*K] f32 as select_keys gives it -> [T, Hq*Dv] f32. Query head
    h uses key head h // (Hq / Hkv), and that the group // (Hkv / G). A token with nothing chosen gets zeros.
    Caches and step as in `attention`.  Source: HF `DeepseekV32Attention`, `MiniMaxM3VLIndexer.build_block_mask`.
    """
    tokens, size = q.shape[0], key_cache.shape[2]
    q3, k3, v3 = (a.reshape(tokens, h, -1) for a, h in ((q, num_heads), (k, num_kv_heads), (v, num_kv_heads)))
    picked = chosen.reshape(tokens, groups, -1).astype(np.int64)
    y = np.zeros((tokens, num_heads, v3.shape[2]))
    for s, end in enumerate(step.context_lens.tolist()):
        start, stop = int(step.query_starts[s]), int(step.query_starts[s + 1])
        table, first = step.block_tables[s], end - (stop - start)
        places = np.arange(first, end)
        key_cache[table[places // size], :, places % size] = k3[start:stop]
        value_cache[table[places // size], :, places % size] = v3[start:stop]
        for t in range(start, stop):
            for h in range(num_kv_heads):
                numbers = picked[t, h * groups // num_kv_heads]
                seen = (numbers[numbers >= 0][:, None] * block + np.arange(block)).reshape(-1)
                seen = seen[seen <= first + t - start]
                if not len(seen):
                    continue
                own = slice(h * num_heads // num_kv_heads, (h + 1) * num_heads // num_kv_heads)
                keys = key_cache[table[seen // size], h, seen % size].astype(np.float64)
                score = q3[t, own].astype(np.float64) @ keys.T * scale
                weight = np.exp(score - score.max(1, keepdims=True))
                values = value_cache[table[seen // size], h, seen % size].astype(np.float64)
                y[t, own] = weight @ values / weight.sum(1, keepdims=True)
    return _f32(y.reshape(tokens, -1))


def _f32(x: Array) -> Array:
    return np.ascontiguousarray(x, dtype=np.float32)


CHOOSING = (layer_norm, select_keys, sparse_attention)
