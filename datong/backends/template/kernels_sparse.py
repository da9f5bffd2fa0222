"""Attention over chosen keys, one function for each operator. CHIP: replace them one by one.

`step` says where the tokens of each sequence lie; `keys` of select_keys is one layer's `[blocks, 1, block size, D]`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from datong.spec.program import Step

Array = NDArray[Any]


def layer_norm(x: Array, weight: Array, bias: Array | None = None, *, eps: float) -> Array:
    """Each row about its mean: x [T, n], weight and bias [n]."""
    z = x - x.mean(axis=1, keepdims=True, dtype=np.float64)
    y = z * weight / np.sqrt(np.square(z).mean(axis=1, keepdims=True) + eps)
    y = y if bias is None else y + bias
    return np.asarray(y, np.float32)


def select_keys(
    q: Array, k: Array, weights: Array | None = None, *, layer: int, num_heads: int, groups: int, top_k: int,
    block: int, scale: float, kind: str, step: Step, keys: Array, local: int = 0,
) -> Array:  # fmt: skip
    """The best blocks of keys per token and group: q [T, H*D], k [T, D], weights [T, H] -> [T, G*K], -1 where fewer."""
    size, chosen = keys.shape[2], np.full((len(q), groups, top_k), -1.0, np.float32)
    queries = q.reshape(len(q), num_heads, -1).astype(np.float64)
    for t, (table, place) in enumerate(_tokens(step)):
        keys[table[place // size], 0, place % size] = k[t]
        seen = np.arange(place + 1)
        score = queries[t] @ keys[table[seen // size], 0, seen % size].T.astype(np.float64) * scale
        score = score.clip(0) if kind == "relu" else score
        score = score if weights is None else score * weights[t, :, None]
        per_group = score.reshape(groups, -1, place + 1).sum(1)
        blocks = np.maximum.reduceat(per_group, np.arange(0, place + 1, block), axis=1)
        if local:
            blocks[:, -local:] = np.inf
        best = np.sort(np.argsort(-blocks, axis=1, kind="stable")[:, :top_k], axis=1)
        chosen[t, :, : best.shape[1]] = best
    return chosen.reshape(len(q), -1)


def sparse_attention(
    q: Array, k: Array, v: Array, chosen: Array, *, layer: int, num_heads: int, num_kv_heads: int, groups: int,
    block: int, scale: float, step: Step, keys: Array, values: Array,
) -> Array:  # fmt: skip
    """Attention to the chosen blocks alone; a block's keys behind the token's own place are not seen."""
    size, group = keys.shape[2], num_heads // num_kv_heads
    y = np.zeros((len(q), num_heads, v.shape[1] // num_kv_heads), np.float32)
    for t, (table, place) in enumerate(_tokens(step)):
        block_id, slot = table[place // size], place % size
        keys[block_id, :, slot] = k[t].reshape(num_kv_heads, -1)
        values[block_id, :, slot] = v[t].reshape(num_kv_heads, -1)
        for h in range(num_heads):
            numbers = chosen[t].reshape(groups, -1)[h * groups // num_heads].astype(int)
            seen = (numbers[numbers >= 0, None] * block + np.arange(block)).ravel()
            seen = seen[seen <= place]
            if not len(seen):
                continue
            seen_keys = keys[table[seen // size], h // group, seen % size].astype(np.float64)
            score = seen_keys @ q[t].reshape(num_heads, -1)[h].astype(np.float64) * scale
            weight = np.exp(score - score.max())
            y[t, h] = weight @ values[table[seen // size], h // group, seen % size].astype(np.float64) / weight.sum()
    return y.reshape(len(q), -1)


def _tokens(step: Step) -> list[tuple[Array, int]]:
    """Of each new token in turn: the block table of its sequence, its place there."""
    found = []
    for s, end in enumerate(step.context_lens.tolist()):
        new = int(step.query_starts[s + 1] - step.query_starts[s])
        found += [(step.block_tables[s], place) for place in range(end - new, end)]
    return found
