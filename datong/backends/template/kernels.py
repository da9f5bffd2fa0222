"""One function per operator of the core tier, in the order of spec/ops.py. CHIP: replace them one by one.

Each takes the operator's inputs (arrays; None for an absent one) and its attributes by name. To give an operator back,
delete its line in KERNELS: another backend then runs it, and the placement report says so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datong.backends.template.kernels_latent import latent_attention
from datong.backends.template.kernels_sparse import layer_norm, select_keys, sparse_attention
from datong.backends.template.kernels_state import causal_conv, gated_delta, linear_attention
from datong.errors import DeviceError
from datong.spec.program import Step

Array = NDArray[Any]


def embedding(ids: Array, weight: Array) -> Array:
    """Rows of a table: ids [T], weight [vocab, n] -> [T, n]."""
    if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < len(weight):
        raise DeviceError("embedding", f"ids should lie in 0..{len(weight) - 1}, they reach {ids.max()}")
    return weight[ids]


def linear(x: Array, weight: Array, bias: Array | None = None) -> Array:
    """Matrix times vectors: x [T, in], weight [out, in], bias [out] -> [T, out]."""
    with np.errstate(all="ignore"):
        y = x @ weight.T
        return y if bias is None else y + bias


def rms_norm(x: Array, weight: Array, *, eps: float, offset: float = 0.0) -> Array:
    """Each group of D channels is normalised by itself: x [T, n], weight [D] -> [T, n]."""
    with np.errstate(all="ignore"):
        groups = x.reshape(len(x), -1, len(weight)).astype(np.float64)
        scale = 1.0 / np.sqrt(np.mean(groups * groups, axis=-1, keepdims=True) + eps)
        return np.asarray(groups * scale * (weight + offset), np.float32).reshape(x.shape)


def rope_table(positions: Array, inv_freq: Array, *, scale: float = 1.0) -> tuple[Array, Array]:
    """The angle is rounded to f32: positions [T] i64, inv_freq [D/2] -> cos, sin [T, D/2]."""
    angle = positions.astype(np.float32)[:, None] * inv_freq
    return (np.cos(angle) * np.float32(scale)), (np.sin(angle) * np.float32(scale))


def rope(x: Array, cos: Array, sin: Array, *, num_heads: int, interleaved: int = 0) -> Array:
    """Rotate the first channels of each head: x [T, H*D], cos and sin [T, r/2]."""
    half = cos.shape[1]
    y = np.array(x).reshape(len(x), num_heads, x.shape[1] // num_heads)
    turned = y[..., : 2 * half].copy()
    first, second = (slice(0, None, 2), slice(1, None, 2)) if interleaved else (slice(0, half), slice(half, None))
    c, s = cos[:, None], sin[:, None]
    with np.errstate(all="ignore"):
        y[..., : 2 * half][..., first] = turned[..., first] * c - turned[..., second] * s
        y[..., : 2 * half][..., second] = turned[..., second] * c + turned[..., first] * s
    return y.reshape(x.shape)


def attention(
    q: Array,
    k: Array,
    v: Array,
    sinks: Array | None = None,
    slopes: Array | None = None,
    *,
    layer: int,
    step: Step,
    keys: Array,
    values: Array,
    num_heads: int,
    num_kv_heads: int,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    bias: str = "none",
) -> Array:
    """Write k and v of the new tokens into the paged cache, then attend causally within each sequence.

    q [T, Hq*D], k [T, Hkv*D], v [T, Hkv*Dv]; sinks, slopes [Hq]; keys, values of `layer`
    [blocks, Hkv, BLOCK_SIZE, D or Dv].
    """
    new, size, group = len(q), keys.shape[2], num_heads // num_kv_heads
    q, k, v = q.reshape(new, num_heads, -1), k.reshape(new, num_kv_heads, -1), v.reshape(new, num_kv_heads, -1)
    y = np.zeros((new, num_heads, v.shape[2]), np.float32)
    for s, length in enumerate(step.context_lens.tolist()):
        start, stop = step.query_starts[s : s + 2].tolist()
        places = np.arange(length - (stop - start), length)
        table = step.block_tables[s]
        keys[table[places // size], :, places % size] = k[start:stop]
        values[table[places // size], :, places % size] = v[start:stop]
        for t, place in zip(range(start, stop), places.tolist(), strict=True):
            seen = np.arange(max(0, place - window + 1) if window else 0, place + 1)
            key, value = (np.repeat(a[table[seen // size], :, seen % size], group, axis=1) for a in (keys, values))
            score = np.einsum("hd,shd->hs", q[t], key) * scale
            if softcap:
                score = softcap * np.tanh(score / softcap)
            if slopes is not None and bias != "none":
                far = (place - seen).astype(np.float32)
                score -= slopes[:, None] * (np.sqrt(far) if bias == "sqrt_alibi" else far)
            y[t] = _softmax_sum(score, value, sinks)
    return y.reshape(new, -1)


def _softmax_sum(score: Array, value: Array, sinks: Array | None) -> Array:
    """Weigh the values: score [Hq, S], value [S, Hq, Dv] -> [Hq, Dv]; a sink [Hq] weighs nothing."""
    with np.errstate(all="ignore"):
        top = score.max(axis=1) if sinks is None else np.maximum(score.max(axis=1), sinks)
        weight = np.exp(score - top[:, None])
        total = weight.sum(axis=1) + (0.0 if sinks is None else np.exp(sinks - top))
        return np.asarray(np.einsum("hs,shd->hd", weight / total[:, None], value), np.float32)


def sigmoid(x: Array) -> Array:
    """Elementwise."""
    with np.errstate(all="ignore"):
        return (1.0 / (1.0 + np.exp(-x.astype(np.float64)))).astype(np.float32)


def glu(gate: Array, up: Array, *, kind: str = "silu", limit: float = 0.0, alpha: float = 0.0) -> Array:
    """Gated unit of a kind of spec/ops.py."""
    with np.errstate(all="ignore"):
        if kind == "gelu_tanh":
            return np.asarray(
                0.5 * gate * (1 + np.tanh(0.7978845608028654 * (gate + 0.044715 * gate**3))) * up, np.float32
            )
        if kind == "oai":
            low = np.minimum(gate, np.float32(limit))
            return np.asarray(low * sigmoid(np.float32(alpha) * low) * (np.clip(up, -limit, limit) + 1))
        silu = gate * sigmoid(gate)
        if kind == "silu_clamp":
            return np.asarray(np.minimum(silu, limit) * np.clip(up, -limit, limit), np.float32)
        return silu * up


def scale(x: Array, *, factor: float) -> Array:
    """Times a number."""
    with np.errstate(all="ignore"):
        return np.asarray(x * np.float32(factor))


def scale_groups(x: Array, s: Array) -> Array:
    """Each of g groups of channels times its own number: x [T, n], s [T, g]."""
    with np.errstate(all="ignore"):
        return (x.reshape(*s.shape, -1) * s[..., None]).reshape(x.shape)


def route(logits: Array, select_bias: Array | None, attrs: dict[str, Any]) -> tuple[Array, Array]:
    """The experts of each token and their weights: logits [T, E] -> [T, K] twice; of equals the lowest index."""
    x = logits.astype(np.float64)
    exp = np.exp(x - x.max(axis=1, keepdims=True))
    score = exp / exp.sum(axis=1, keepdims=True) if attrs["score"] == "softmax" else 1 / (1 + np.exp(-x))
    choice = score if select_bias is None else score + select_bias
    groups = attrs.get("groups", 1)
    if groups > 1:
        members = choice.reshape(len(x), groups, choice.shape[1] // groups)
        best = np.argsort(-np.sort(members, axis=2)[..., -2:].sum(axis=2), axis=1, kind="stable")
        closed = np.ones((len(x), groups), bool)
        np.put_along_axis(closed, best[:, : attrs.get("top_groups", 1)], False, axis=1)
        choice = np.where(np.repeat(closed, members.shape[2], axis=1), -np.inf, choice)
    chosen = np.argsort(-choice, axis=1, kind="stable")[:, : attrs["top_k"]]
    weights = np.take_along_axis(score, chosen, axis=1)
    if attrs["renorm"]:
        weights = weights / (weights.sum(axis=1, keepdims=True) + (1e-20 if attrs["score"] == "sigmoid" else 0))
    return chosen, weights * attrs["scale"]


def moe(
    x: Array,
    logits: Array,
    gate: Any,
    up: Any,
    down: Any,
    select_bias: Array | None = None,
    gate_bias: Array | None = None,
    up_bias: Array | None = None,
    down_bias: Array | None = None,
    **attrs: Any,
) -> Array:
    """Each token through its own experts: x [T, n]; gate, up [E, I, n], down [E, n, I], one expert at a time."""
    chosen, weights = route(logits, select_bias, attrs)
    y = np.zeros(x.shape, np.float32)
    for e in np.unique(chosen).tolist():
        token, place = np.nonzero(chosen == e)
        first = linear(x[token], gate[e], None if gate_bias is None else gate_bias[e])
        if up is not None:
            second = linear(x[token], up[e], None if up_bias is None else up_bias[e])
        elif attrs["order"] == "halves":
            first, second = np.split(first, 2, axis=1)
        else:
            first, second = first[:, ::2], first[:, 1::2]
        inner = glu(first, second, **{k: attrs[k] for k in ("kind", "limit", "alpha") if k in attrs})
        out = linear(inner, down[e], None if down_bias is None else down_bias[e])
        y[token] += weights[token, place, None].astype(np.float32) * out
    return y


def add(a: Array, b: Array) -> Array:
    """Elementwise."""
    with np.errstate(all="ignore"):
        return np.asarray(a + b)


def mul(a: Array, b: Array) -> Array:
    """Elementwise."""
    with np.errstate(all="ignore"):
        return np.asarray(a * b)


def slice_(x: Array, *, group: int, start: int, length: int) -> Array:
    """Of each group of channels, `length` from `start`: x [T, n] -> [T, n / group * length]."""
    return np.ascontiguousarray(x.reshape(len(x), -1, group)[..., start : start + length].reshape(len(x), -1))


def concat(a: Array, b: Array, *, groups: int) -> Array:
    """Channels of a and b, group by group."""
    both = [part.reshape(len(part), groups, -1) for part in (a, b)]
    return np.concatenate(both, axis=2).reshape(len(a), -1)


def take_rows(x: Array, rows: Array) -> Array:
    """Choose tokens: x [T, n], rows [R] -> [R, n]."""
    return x[rows]


KERNELS: dict[str, Callable[..., Array | tuple[Array, ...]]] = {
    "embedding": embedding,
    "linear": linear,
    "rms_norm": rms_norm,
    "rope_table": rope_table,
    "rope": rope,
    "attention": attention,
    "sigmoid": sigmoid,
    "glu": glu,
    "add": add,
    "mul": mul,
    "scale": scale,
    "scale_groups": scale_groups,
    "moe": moe,
    "causal_conv": causal_conv,
    "gated_delta": gated_delta,
    "linear_attention": linear_attention,
    "select_keys": select_keys,
    "sparse_attention": sparse_attention,
    "latent_attention": latent_attention,
    "layer_norm": layer_norm,
    "slice": slice_,
    "concat": concat,
    "take_rows": take_rows,
}
