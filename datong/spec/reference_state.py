"""The definition of the operators that keep a state per sequence, in NumPy; `reference.py` has the others.

A state is one array per layer, `[states, …]` f32, written in place; sequence s of a step has slot
`step.state_slots[s]` (absent: slot s). A sequence whose cache is empty starts from zeros, whatever its slot holds, and
one without new tokens keeps what it has. Within a step all is f64; the state is rounded to f32 at its end.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datong.spec.program import Step

Array = NDArray[Any]


def _sequences(step: Step) -> Iterator[tuple[int, int, int, bool]]:
    """Sequences with new tokens: (first row, row after the last, slot, does it start here)."""
    for s, end in enumerate(step.context_lens.tolist()):
        start, stop = int(step.query_starts[s]), int(step.query_starts[s + 1])
        if stop > start:
            slot = s if step.state_slots is None else int(step.state_slots[s])
            yield start, stop, slot, end == stop - start


def _begin(state: Array, slot: int, fresh: bool) -> Array:
    return np.zeros(state.shape[1:]) if fresh else state[slot].astype(np.float64)


def _f32(x: Array) -> Array:
    return np.ascontiguousarray(x, dtype=np.float32)


def _logistic(x: Array) -> Array:
    small = np.exp(-np.abs(x))
    return np.asarray(np.where(x >= 0, 1, small) / (1 + small))


def causal_conv(
    x: Array, weight: Array, bias: Array | None = None, *, step: Step, state: Array, layer: int = 0, kind: str = "none"
) -> Array:
    """Short convolution over the tokens of each sequence, every channel on its own.

        y[t, c] = act(bias[c] + sum over j of weight[c, j] * x[t - (K-1) + j, c]);  x before the sequence is 0

    x [T, C], weight [C, K], bias [C] -> [T, C] f32. kind: none, or silu: act(z) = z * sigmoid(z).
    state [states, 1, C, K-1]: the last inputs, oldest first; `layer` chose it.
    Source: HF `Qwen3NextGatedDeltaNet`, `torch_causal_conv1d_update`.
    """
    y, w = np.zeros(x.shape), weight.astype(np.float64)
    kept = w.shape[1] - 1
    for start, stop, slot, fresh in _sequences(step):
        past = _begin(state, slot, fresh)[0]  # [C, K-1]
        line = np.concatenate([past, x[start:stop].T.astype(np.float64)], axis=1)
        for j in range(w.shape[1]):
            y[start:stop] += (w[:, j, None] * line[:, j : j + stop - start]).T
        state[slot, 0] = line[:, line.shape[1] - kept :]
    z = y if bias is None else y + bias.astype(np.float64)
    return _f32(z * _logistic(z) if kind == "silu" else z)


def gated_delta(
    q: Array,
    k: Array,
    v: Array,
    a: Array,
    b: Array,
    a_log: Array,
    dt_bias: Array,
    *,
    step: Step,
    state: Array,
    num_k_heads: int,
    num_v_heads: int,
    scale: float,
    eps: float,
    layer: int = 0,
) -> Array:
    """Gated delta rule: a state per value head that decays, and is corrected where a key reads it wrongly.

        n(x)   = x / sqrt(sum(x^2) + eps) per head;  q = n(q) * scale;  k = n(k);  k head = v head // (Hv / Hk)
        decay  = exp(-exp(a_log) * log(1 + exp(a + dt_bias)));  beta = sigmoid(b)
        S      = decay S;  S += k (beta (v - S^T k))^T;  y = S^T q

    q, k [T, Hk*Dk], v [T, Hv*Dv], a, b [T, Hv], a_log, dt_bias [Hv] -> [T, Hv*Dv] f32.
    state S [states, Hv, Dk, Dv]; `layer` chose it.
    Source: Yang et al. 2024, eq. 10; HF `torch_recurrent_gated_delta_rule`, `Qwen3NextGatedDeltaNet`.
    """
    group, rows = num_v_heads // num_k_heads, q.shape[0]
    units = []
    for x in (q, k):
        heads = x.astype(np.float64).reshape(rows, num_k_heads, -1)
        units.append(np.repeat(heads / np.sqrt((heads * heads).sum(axis=2, keepdims=True) + eps), group, axis=1))
    queries, keys = units[0] * scale, units[1]
    values = v.astype(np.float64).reshape(rows, num_v_heads, -1)
    softplus = np.logaddexp(0.0, a.astype(np.float64) + dt_bias.astype(np.float64))
    decay, beta = np.exp(-np.exp(a_log.astype(np.float64)) * softplus), _logistic(b.astype(np.float64))
    y = np.zeros(values.shape)
    for start, stop, slot, fresh in _sequences(step):
        s = _begin(state, slot, fresh)
        for t in range(start, stop):
            s = s * decay[t, :, None, None]
            wrong = values[t] - np.einsum("hkv,hk->hv", s, keys[t])
            s = s + keys[t][:, :, None] * (beta[t, :, None] * wrong)[:, None, :]
            y[t] = np.einsum("hkv,hk->hv", s, queries[t])
        state[slot] = s
    return _f32(y.reshape(rows, -1))


def linear_attention(
    q: Array, k: Array, v: Array, slopes: Array, *, step: Step, state: Array, num_heads: int, scale: float,
    layer: int = 0,
) -> Array:  # fmt: skip
    """Attention without softmax, whose past decays by a constant per head: S = exp(-slope) S + k v^T; y = scale S^T q.

    q, k [T, H*D], v [T, H*Dv], slopes [H] -> [T, H*Dv] f32. state S [states, H, D, Dv]; `layer` chose it.
    Source: Qin et al. 2024, Lightning Attention-2, eq. 4; vLLM `minimax_text_01.py`.
    """
    queries, keys, values = (x.astype(np.float64).reshape(x.shape[0], num_heads, -1) for x in (q, k, v))
    decay = np.exp(-slopes.astype(np.float64))[:, None, None]
    y = np.zeros(values.shape)
    for start, stop, slot, fresh in _sequences(step):
        s = _begin(state, slot, fresh)
        for t in range(start, stop):
            s = decay * s + keys[t][:, :, None] * values[t][:, None, :]
            y[t] = np.einsum("hkv,hk->hv", s, queries[t])
        state[slot] = s
    return _f32((scale * y).reshape(q.shape[0], -1))


ALL = (causal_conv, gated_delta, linear_attention)
