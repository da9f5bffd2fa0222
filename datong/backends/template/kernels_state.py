"""The operators that keep a state per sequence, one function each. CHIP: replace them one by one.

`state` is one layer's array of slots, read unless a sequence begins, written at its end: `begin` and the last line of
each loop say how.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datong.spec.program import Step

Array = NDArray[Any]


def sequences(step: Step) -> Iterator[tuple[slice, int, bool]]:
    """Those with new tokens: their rows, their slot, and whether they begin here."""
    slots = step.state_slots if step.state_slots is not None else range(len(step.context_lens))
    for s, slot in enumerate(slots):
        start, stop = step.query_starts[s : s + 2].tolist()
        if stop > start:
            yield slice(start, stop), int(slot), int(step.context_lens[s]) == stop - start


def begin(state: Array, slot: int, fresh: bool) -> Array:
    """The state of a sequence, zero where it begins, whatever the slot holds."""
    return np.zeros(state.shape[1:]) if fresh else state[slot].astype(np.float64)


def _swish(x: Array) -> Array:
    with np.errstate(all="ignore"):
        return np.asarray(x / (1.0 + np.exp(-x)))


def causal_conv(
    x: Array, weight: Array, bias: Array | None = None, *, layer: int, kind: str, step: Step, state: Array
) -> Array:
    """Each channel over its last K inputs: x [T, C], weight [C, K], bias [C], state [slots, 1, C, K-1]."""
    y = np.zeros(x.shape)
    for rows, slot, fresh in sequences(step):
        line = np.concatenate([begin(state, slot, fresh)[0].T, x[rows]])  # [K-1 + t, C]
        seen = np.lib.stride_tricks.sliding_window_view(line, weight.shape[1], axis=0)  # [t, C, K]
        y[rows] = np.einsum("tck,ck->tc", seen, weight)
        state[slot, 0] = line[len(line) - weight.shape[1] + 1 :].T
    y = y if bias is None else y + bias
    return (_swish(y) if kind == "silu" else y).astype(np.float32)


def gated_delta(
    q: Array,
    k: Array,
    v: Array,
    a: Array,
    b: Array,
    a_log: Array,
    dt_bias: Array,
    *,
    layer: int,
    num_k_heads: int,
    num_v_heads: int,
    scale: float,
    eps: float,
    step: Step,
    state: Array,
) -> Array:
    """The state decays and is corrected: q, k [T, Hk*Dk], v [T, Hv*Dv], a, b [T, Hv], state [slots, Hv, Dk, Dv]."""
    group = num_v_heads // num_k_heads
    heads = [x.reshape(len(x), num_k_heads, -1).astype(np.float64) for x in (q, k)]
    unit = [np.repeat(x / np.sqrt((x * x).sum(2, keepdims=True) + eps), group, axis=1) for x in heads]
    values, y = v.reshape(len(v), num_v_heads, -1), np.zeros((len(v), num_v_heads, v.shape[1] // num_v_heads))
    decay = np.exp(-np.exp(a_log) * np.logaddexp(0.0, (a + dt_bias).astype(np.float64)))
    beta = 1.0 / (1.0 + np.exp(-b.astype(np.float64)))
    for rows, slot, fresh in sequences(step):
        s = begin(state, slot, fresh)
        for t in range(rows.start, rows.stop):
            s = s * decay[t][:, None, None]
            update = beta[t][:, None] * (values[t] - np.einsum("hk,hkv->hv", unit[1][t], s))
            s = s + unit[1][t][:, :, None] * update[:, None]
            y[t] = scale * np.einsum("hk,hkv->hv", unit[0][t], s)
        state[slot] = s
    return y.reshape(len(y), -1).astype(np.float32)


def linear_attention(
    q: Array, k: Array, v: Array, slopes: Array, *, layer: int, num_heads: int, scale: float, step: Step, state: Array
) -> Array:
    """The state decays by a constant per head: q, k [T, H*D], v [T, H*Dv], slopes [H], state [slots, H, D, Dv]."""
    queries, keys, values = (x.reshape(len(x), num_heads, -1).astype(np.float64) for x in (q, k, v))
    y, decay = np.zeros(values.shape), np.exp(-slopes.astype(np.float64))[:, None, None]
    for rows, slot, fresh in sequences(step):
        s = begin(state, slot, fresh)
        for t in range(rows.start, rows.stop):
            s = s * decay + keys[t][:, :, None] * values[t][:, None]
            y[t] = scale * np.einsum("hk,hkv->hv", queries[t], s)
        state[slot] = s
    return y.reshape(len(y), -1).astype(np.float32)
