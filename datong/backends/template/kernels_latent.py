"""Latent attention. CHIP: replace it.

`keys` is one layer's `[blocks, 1, block size, C + R]`: one row a token, which all heads share.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from datong.backends.template.kernels_sparse import _tokens
from datong.spec.program import Step

Array = NDArray[Any]


def latent_attention(
    q: Array, latent: Array, k_rope: Array, weight: Array, chosen: Array | None = None, *, layer: int, num_heads: int,
    plain: int, scale: float, step: Step, keys: Array,
) -> Array:  # fmt: skip
    """In the absorbed form: queries go into the narrow space, so rows are read as they are."""
    size, wide = keys.shape[2], latent.shape[1]
    heads = weight.reshape(num_heads, -1, wide).astype(np.float64)
    own = q.reshape(len(q), num_heads, -1).astype(np.float64)
    y = np.zeros((len(q), num_heads, heads.shape[1] - plain), np.float32)
    for t, (table, place) in enumerate(_tokens(step)):
        keys[table[place // size], 0, place % size] = np.concatenate([latent[t], k_rope[t]])
        seen = np.arange(place + 1)
        if chosen is not None:
            seen = np.intersect1d(chosen[t].astype(int), seen)
        if not len(seen):
            continue
        rows = keys[table[seen // size], 0, seen % size].astype(np.float64)
        narrow = np.einsum("hp,hpc->hc", own[t, :, :plain], heads[:, :plain])
        score = (narrow @ rows[:, :wide].T + own[t, :, plain:] @ rows[:, wide:].T) * scale
        share = np.exp(score - score.max(1, keepdims=True))
        found = share / share.sum(1, keepdims=True) @ rows[:, :wide]
        y[t] = np.einsum("hc,hvc->hv", found, heads[:, plain:])
    return y.reshape(len(q), -1)
