"""The definition of latent_attention, in the expanded form: keys and values of every head are made of the cache."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from datong.spec.program import Step

Array = NDArray[Any]


def latent_attention(
    q: Array,
    latent: Array,
    k_rope: Array,
    weight: Array,
    chosen: Array | None = None,
    *,
    step: Step,
    key_cache: Array,
    num_heads: int,
    plain: int,
    scale: float,
    layer: int = 0,
) -> Array:
    """Write the new rows into the paged cache, then attend causally over each sequence's own rows.

    q [T, Hq*(P+R)], latent [T, C], k_rope [T, R], weight [Hq*(P+Dv), C] -> [T, Hq*Dv] f32. Of head h, rows h*(P+Dv)...
    of the weight make the key's first P channels and then the value of a row's first C channels; the key's last R are
    the row's own. key_cache [B, 1, block, C+R]. With `chosen` [T, K] f32, as select_keys gives it for one group and
    blocks of one key, a token sees the keys of these numbers alone.
    Source: DeepSeek-V2 (arXiv 2405.04434), 2.1; HF `DeepseekV3Attention`, `DeepseekV32Attention`.
    """
    tokens, size, wide = q.shape[0], key_cache.shape[2], latent.shape[1]
    rows = np.concatenate([latent, k_rope], axis=1)
    q3 = q.reshape(tokens, num_heads, -1).astype(np.float64)
    heads = weight.reshape(num_heads, -1, wide).astype(np.float64)
    up, down = heads[:, :plain], heads[:, plain:]
    y = np.zeros((tokens, num_heads, down.shape[1]))
    for s, end in enumerate(step.context_lens.tolist()):
        start, stop = int(step.query_starts[s]), int(step.query_starts[s + 1])
        table, first = step.block_tables[s], end - (stop - start)
        places, every = np.arange(first, end), np.arange(end)
        key_cache[table[places // size], 0, places % size] = rows[start:stop]
        seen = key_cache[table[every // size], 0, every % size].astype(np.float64)
        keys = np.einsum("hpc,jc->hjp", up, seen[:, :wide])
        values = np.einsum("hvc,jc->hjv", down, seen[:, :wide])
        own = q3[start:stop].transpose(1, 0, 2)
        score = (own[..., :plain] @ keys.transpose(0, 2, 1) + own[..., plain:] @ seen[:, wide:].T) * scale
        hidden = places[:, None] < every[None]
        if chosen is not None:
            hidden |= ~(chosen[start:stop, :, None] == every).any(1)
        score[:, hidden] = -np.inf
        seeing = ~hidden.all(1)  # tokens
        if not seeing.any():
            continue
        part = np.exp(score[:, seeing] - score[:, seeing].max(2, keepdims=True))
        y[start:stop][seeing] = (part @ values / part.sum(2, keepdims=True)).transpose(1, 0, 2)
    return np.ascontiguousarray(y.reshape(tokens, -1), dtype=np.float32)
