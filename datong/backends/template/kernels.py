"""One function per operator of the core tier, in the order of spec/ops.py. CHIP: replace them one by one.

Each takes the operator's inputs (arrays; None for an absent one) and its attributes by name. To give an operator back,
delete its line in KERNELS: another backend then runs it, and the placement report says so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
) -> Array:
    """Write k and v of the new tokens into the paged cache, then attend causally within each sequence.

    q [T, Hq*D], k [T, Hkv*D], v [T, Hkv*Dv]; keys, values [blocks, Hkv, BLOCK_SIZE, D or Dv] of `layer`.
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
            y[t] = _softmax_sum(np.einsum("hd,shd->hs", q[t], key) * scale, value, softcap)
    return y.reshape(new, -1)


def _softmax_sum(score: Array, value: Array, softcap: float) -> Array:
    """Weigh the values: score [Hq, S], value [S, Hq, Dv] -> [Hq, Dv]."""
    with np.errstate(all="ignore"):
        if softcap:
            score = softcap * np.tanh(score / softcap)
        weight = np.exp(score - score.max(axis=1, keepdims=True))
        return np.asarray(np.einsum("hs,shd->hd", weight / weight.sum(axis=1, keepdims=True), value))


def sigmoid(x: Array) -> Array:
    """Elementwise."""
    with np.errstate(all="ignore"):
        return (1.0 / (1.0 + np.exp(-x.astype(np.float64)))).astype(np.float32)


def glu(gate: Array, up: Array, *, kind: str = "silu") -> Array:
    """silu(gate) * up; `silu` is the only kind."""
    with np.errstate(all="ignore"):
        return gate * sigmoid(gate) * up


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
    "slice": slice_,
    "take_rows": take_rows,
}
