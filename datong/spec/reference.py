"""The definition of every operator, in NumPy. Kernels, passes and backends are right when they agree with this.

Weights arrive dequantised, f32. Norms, activations and attention are computed in f64 and rounded once to f32, so that
the definition adds no noise of its own to a comparison. `linear` multiplies in f32 (BLAS): its error, about
sqrt(in) * 2^-24, is far below every bound in tolerance.py, and f64 would double the memory of the largest matrices.

Dims as in ops.py: T tokens, `n` any width, D head size, Hq / Hkv heads, S sequences, M block table width.
Also here: `dequantise`, the meaning of the formats in formats.py (reference_formats.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datong.spec.program import Step
from datong.spec.reference_formats import dequantise as dequantise
from datong.spec.reference_formats import unpack_nibbles as unpack_nibbles
from datong.spec.reference_latent import latent_attention
from datong.spec.reference_sparse import CHOOSING
from datong.spec.reference_state import ALL as WITH_STATE

Array = NDArray[Any]


def _f32(x: Array) -> Array:
    return np.ascontiguousarray(x, dtype=np.float32)


# ---- core -------------------------------------------------------------------------------------------------------


def embedding(ids: Array, weight: Array) -> Array:
    """Row lookup, y[t] = weight[ids[t]].  ids [T] i64, weight [vocab, n] -> [T, n] f32.  Source: ONNX Gather-13."""
    return _f32(weight[ids])


def linear(x: Array, weight: Array, bias: Array | None = None) -> Array:
    """Dense layer, y = x @ weight.T + bias.  x [T, in], weight [out, in], bias [out] -> [T, out] f32."""
    y = _f32(x) @ _f32(weight).T
    return _f32(y if bias is None else y + bias)


def rms_norm(x: Array, weight: Array, *, eps: float, offset: float = 0.0) -> Array:
    """Root-mean-square norm, y = x / sqrt(mean(x^2) + eps) * (weight + offset), per group of D channels.

    x [T, n], weight [D] where D divides n (D < n: one norm per head) -> [T, n] f32. eps > 0 is added to the mean.
    Source: Zhang & Sennrich 2019, eq. 4; ONNX RMSNormalization-23; offset 1: HF modeling_gemma.py.
    """
    g = x.astype(np.float64).reshape(x.shape[0], x.shape[1] // weight.shape[0], weight.shape[0])
    y = g / np.sqrt(np.mean(g * g, axis=-1, keepdims=True) + eps) * (weight.astype(np.float64) + offset)
    return _f32(y.reshape(x.shape))


def rope_table(positions: Array, inv_freq: Array, *, scale: float = 1.0) -> tuple[Array, Array]:
    """Tables of cos and sin of positions * inv_freq, times scale.

    positions [T] i64, inv_freq [D/2] f32 -> two [T, D/2] f32. The angle is rounded to f32, as it was in training.
    Source: Su et al. 2021, eq. 34; HF modeling_rope_utils.py; scale: yarn's attention factor.
    """
    angle = (positions.astype(np.float32)[:, None] * inv_freq.astype(np.float32)[None, :]).astype(np.float64)
    return _f32(np.cos(angle) * scale), _f32(np.sin(angle) * scale)


def rope(x: Array, cos: Array, sin: Array, *, num_heads: int, interleaved: int = 0) -> Array:
    """Rotate pairs of the first r channels of each head; the other channels pass.

        y[i], y[j] = x[i] * cos[p] - x[j] * sin[p], x[i] * sin[p] + x[j] * cos[p]      p = 0 .. r/2-1
        (i, j) = (p, p + r/2), or (2p, 2p + 1) when interleaved

    x [T, H*D], cos and sin [T, r/2], r <= D -> [T, H*D] f32.  Source: ONNX RotaryEmbedding-23; HF `rotate_half`.
    """
    half = cos.shape[1]
    y = x.astype(np.float64).reshape(x.shape[0], num_heads, -1)
    first, second = (
        (np.s_[: 2 * half : 2], np.s_[1 : 2 * half : 2]) if interleaved else (np.s_[:half], np.s_[half : 2 * half])
    )
    a, b = y[..., first].copy(), y[..., second].copy()
    c, s = cos.astype(np.float64)[:, None, :], sin.astype(np.float64)[:, None, :]
    y[..., first], y[..., second] = a * c - b * s, a * s + b * c
    return _f32(y.reshape(x.shape))


def attention(
    q: Array,
    k: Array,
    v: Array,
    sinks: Array | None = None,
    slopes: Array | None = None,
    *,
    step: Step,
    key_cache: Array,
    value_cache: Array,
    num_heads: int,
    num_kv_heads: int,
    scale: float,
    layer: int = 0,
    window: int = 0,
    softcap: float = 0.0,
    bias: str = "none",
) -> Array:
    """Write the new keys and values into the paged cache, then attend to the cache, causally.

        p(t)   = context_lens[s] - (new tokens of s) + (index of t within s)        place of token t in its cache
        key_cache[block_tables[s, p // bs], :, p % bs] = k[t], rounded to the cache's dtype; values likewise
        score  = scale * q . key;  softcap > 0: score = softcap * tanh(score / softcap)
        bias:    score -= slope * (p - j), or slope * sqrt(p - j);  sink: one more score, whose value is 0
        y      = softmax(score over keys j <= p, and p - j < window unless window is 0) @ values

    q [T, Hq*D], k [T, Hkv*D], v [T, Hkv*Dv] f32; query head h uses key head h // (Hq / Hkv) -> [T, Hq*Dv] f32.
    key_cache [blocks, Hkv, bs, D], value_cache [blocks, Hkv, bs, Dv] f32|f16|bf16, written in place;
    `layer` chose them. sinks, slopes [Hq] f32.
    step: query_starts [S+1], context_lens [S], block_tables [S, M]; blocks that a window has left may be -1.

    Source: ONNX Attention-25 (is_causal, left_window_size = window - 1); paging: Kwon et al. 2023, §4;
    sinks: HF `GptOssAttention`; sqrt_alibi: vLLM `step1.py`.
    """
    q3, k3, v3 = (a.reshape(a.shape[0], h, -1) for a, h in ((q, num_heads), (k, num_kv_heads), (v, num_kv_heads)))
    block_size, y = key_cache.shape[2], np.zeros((q.shape[0], num_heads, v3.shape[2]))
    for s in range(len(step.context_lens)):
        start, stop = int(step.query_starts[s]), int(step.query_starts[s + 1])
        end = int(step.context_lens[s])
        queries = np.arange(end - (stop - start), end)
        block, slot = step.block_tables[s, queries // block_size], queries % block_size
        key_cache[block, :, slot], value_cache[block, :, slot] = k3[start:stop], v3[start:stop]

        first = max(0, int(queries[0]) - window + 1) if window and len(queries) else 0
        keys = np.arange(first, end)
        block, slot = step.block_tables[s, keys // block_size], keys % block_size
        behind = queries[:, None] - keys[None, :]
        seen = (behind >= 0) & ((behind < window) if window else True)
        far, keys_, values_ = _distances(behind, slopes, bias), key_cache[block, :, slot], value_cache[block, :, slot]
        y[start:stop] = _attend(q3[start:stop], keys_, values_, seen, scale, softcap, far, sinks)
    return _f32(y.reshape(q.shape[0], -1))


def _distances(behind: Array, slopes: Array | None, bias: str) -> Array | None:
    """What a bias takes off the scores: behind [t, n] i64 (>= 0 where seen), slopes [Hq] -> [Hq, t, n] f64 or None."""
    if slopes is None or bias == "none":
        return None
    far = np.maximum(behind, 0).astype(np.float64)
    return slopes.astype(np.float64)[:, None, None] * (np.sqrt(far) if bias == "sqrt_alibi" else far)


def _attend(
    q: Array, k: Array, v: Array, seen: Array, scale: float, softcap: float, far: Array | None, sinks: Array | None
) -> Array:
    """Attention of one sequence: q [t, Hq, D], k [n, Hkv, D], v [n, Hkv, Dv], seen [t, n] bool -> [t, Hq, Dv] f64."""
    group = q.shape[1] // k.shape[1]
    kk, vv = (np.repeat(a.astype(np.float64).transpose(1, 0, 2), group, axis=0) for a in (k, v))
    score = scale * (q.astype(np.float64).transpose(1, 0, 2) @ kk.transpose(0, 2, 1))
    if softcap:
        score = softcap * np.tanh(score / softcap)
    score = np.where(seen, score if far is None else score - far, -np.inf)
    top = score.max(axis=-1, keepdims=True, initial=-np.inf, where=seen)
    sink = None if sinks is None else sinks.astype(np.float64)[:, None, None]
    top = top if sink is None else np.maximum(top, sink)
    p = np.exp(score - top)
    total = p.sum(axis=-1, keepdims=True) + (0.0 if sink is None else np.exp(sink - top))
    y: Array = (p / total) @ vv
    return y.transpose(1, 0, 2)


def sigmoid(x: Array) -> Array:
    """Logistic, y = 1 / (1 + exp(-x)).  x [T, n] -> [T, n] f32; no overflow for any x.  Source: ONNX Sigmoid-13."""
    return _f32(_logistic(x))


def _logistic(x: Array) -> Array:
    small = np.exp(-np.abs(x.astype(np.float64)))
    return np.asarray(np.where(x >= 0, 1, small) / (1 + small))


def glu(gate: Array, up: Array, *, kind: str = "silu", limit: float = 0.0, alpha: float = 0.0) -> Array:
    """Gated linear unit.  gate g, up u [T, n] -> [T, n] f32.

    silu:       g * sigmoid(g) * u.  Source: Shazeer 2020; HF `LlamaMLP`
    gelu_tanh:  0.5 g (1 + tanh(sqrt(2/pi) (g + 0.044715 g^3))) * u.  Source: HF `Gemma3MLP`
    silu_clamp: min(silu(g), L) * clip(u, -L, L).  Source: vLLM `step3p5.py`, swiglustep
    oai:        h * sigmoid(alpha * h) * (clip(u, -L, L) + 1), h = min(g, L).  Source: HF `GptOssExperts`
    """
    g, u = gate.astype(np.float64), up.astype(np.float64)
    if kind == "gelu_tanh":
        return _f32(0.5 * g * (1 + np.tanh(np.sqrt(2 / np.pi) * (g + 0.044715 * g**3))) * u)
    if kind == "oai":
        g = np.minimum(g, limit)
        return _f32(g * _logistic(alpha * g) * (np.clip(u, -limit, limit) + 1))
    silu = g * _logistic(g)
    if kind == "silu_clamp":
        return _f32(np.minimum(silu, limit) * np.clip(u, -limit, limit))
    return _f32(silu * up)


def scale(x: Array, *, factor: float) -> Array:
    """Multiple, y = x * factor, the factor rounded to f32.  x [T, n] -> [T, n] f32.  Source: ONNX Mul-14."""
    return _f32(x * np.float32(factor))


def scale_groups(x: Array, s: Array) -> Array:
    """Gate groups of channels.  x [T, n], s [T, g] -> [T, n] f32: channel c times s[t, c // (n / g)]."""
    return _f32((x.reshape(*s.shape, x.shape[1] // s.shape[1]) * s[:, :, None]).reshape(x.shape))


def route(
    logits: Array,
    select_bias: Array | None = None,
    *,
    top_k: int,
    score: str,
    renorm: int,
    scale: float,
    groups: int = 1,
    top_groups: int = 1,
) -> tuple[Array, Array]:
    """Which experts a token goes to, and with which weights: logits [T, E] -> [T, K] i64 best first, [T, K] f64.

    Source: HF `DeepseekV3TopkRouter` (groups, bias for the choice only), `Qwen3MoeTopKRouter`.
    """
    x = logits.astype(np.float64)
    e = np.exp(x - x.max(axis=1, keepdims=True))
    p = e / e.sum(axis=1, keepdims=True) if score == "softmax" else _logistic(x)
    choice = p if select_bias is None else p + select_bias.astype(np.float64)
    if groups > 1:
        members = choice.reshape(len(x), groups, x.shape[1] // groups)
        best = np.sort(members, axis=2)[:, :, -2:].sum(axis=2)
        allowed = np.zeros(best.shape, bool)
        np.put_along_axis(allowed, np.argsort(-best, axis=1, kind="stable")[:, :top_groups], True, axis=1)
        choice = np.where(allowed[:, :, None], members, -np.inf).reshape(x.shape)
    chosen = np.argsort(-choice, axis=1, kind="stable")[:, :top_k]  # of equals the lowest index
    weights = np.take_along_axis(p, chosen, axis=1)
    if renorm:
        weights = weights / (weights.sum(axis=1, keepdims=True) + (1e-20 if score == "sigmoid" else 0.0))
    return chosen, weights * scale


def moe(
    x: Array,
    logits: Array,
    gate: Array,
    up: Array | None,
    down: Array,
    select_bias: Array | None = None,
    gate_bias: Array | None = None,
    up_bias: Array | None = None,
    down_bias: Array | None = None,
    *,
    top_k: int,
    score: str,
    renorm: int,
    scale: float,
    kind: str,
    groups: int = 1,
    top_groups: int = 1,
    order: str = "split",
    limit: float = 0.0,
    alpha: float = 0.0,
) -> Array:
    """Mixture of experts: each token through its own few.

    x [T, n], logits [T, E], gate [E, I, n] (with `up` inside: [E, 2 I, n]), up [E, I, n], down [E, n, I],
    select_bias [E], gate_bias [E, I or 2 I], up_bias [E, I], down_bias [E, n] -> [T, n] f32.

    Source: Shazeer et al. 2017; `route`; HF `MixtralSparseMoeBlock`, `GptOssExperts` (order pairs, biases).
    """
    settings: dict[str, Any] = {"renorm": renorm, "scale": scale, "groups": groups, "top_groups": top_groups}
    chosen, weights = route(logits, select_bias, top_k=top_k, score=score, **settings)
    y = np.zeros(x.shape)
    for e in np.unique(chosen):
        token, place = np.nonzero(chosen == e)
        first = linear(x[token], gate[e], None if gate_bias is None else gate_bias[e])
        if up is None:
            half = first.shape[1] // 2
            first, second = (first[:, :half], first[:, half:]) if order == "halves" else (first[:, ::2], first[:, 1::2])
        else:
            second = linear(x[token], up[e], None if up_bias is None else up_bias[e])
        inner = glu(first, second, kind=kind, limit=limit, alpha=alpha)
        out = linear(inner, down[e], None if down_bias is None else down_bias[e])
        y[token] += weights[token, place, None] * out
    return _f32(y)


def add(a: Array, b: Array) -> Array:
    """Sum, y = a + b.  [T, n] each -> [T, n] f32, rounded once.  Source: ONNX Add-14."""
    return _f32(a + b)


def mul(a: Array, b: Array) -> Array:
    """Product, y = a * b.  [T, n] each -> [T, n] f32, rounded once.  Source: ONNX Mul-14."""
    return _f32(a * b)


def slice_(x: Array, *, group: int, start: int, length: int) -> Array:
    """Keep [start : start+length] of every `group` channels.  x [T, n] -> [T, n / group * length] f32."""
    groups = x.shape[1] // group
    return _f32(x.reshape(x.shape[0], groups, group)[:, :, start : start + length].reshape(x.shape[0], groups * length))


def concat(a: Array, b: Array, *, groups: int) -> Array:
    """Join channels group by group.  a [T, G * m], b [T, G * k] -> [T, G * (m + k)] f32.  Source: ONNX Concat-13."""
    parts = [x.reshape(x.shape[0], groups, x.shape[1] // groups) for x in (a, b)]
    return _f32(np.concatenate(parts, axis=2).reshape(a.shape[0], a.shape[1] + b.shape[1]))


def take_rows(x: Array, rows: Array) -> Array:
    """y[r] = x[rows[r]].  x [T, n], rows [R] i64 in 0..T-1 -> [R, n] f32.  Source: ONNX Gather-13."""
    return _f32(x[rows])


# ---- fused: each equals its expansion ---------------------------------------------------------------------------


def add_rms_norm(a: Array, b: Array, weight: Array, *, eps: float, offset: float = 0.0) -> tuple[Array, Array]:
    """Norm of a sum: sum = a + b; y = rms_norm(sum).  a, b [T, n], weight [n] -> sum, y [T, n] f32."""
    total = add(a, b)
    return total, rms_norm(total, weight, eps=eps, offset=offset)


def linear_multi(x: Array, *weights_and_biases: Array | None, count: int) -> tuple[Array, ...]:
    """N linears of one input.  x [T, in], N weights [out_i, in], N biases [out_i] or None -> N of [T, out_i] f32."""
    weights, biases = weights_and_biases[:count], weights_and_biases[count:] or (None,) * count
    return tuple(linear(x, w, b) for w, b in zip(weights, biases, strict=True) if w is not None)


def linear_glu(x: Array, gate: Array, up: Array, *, kind: str = "silu") -> Array:
    """Gated pair: y = silu(x @ gate.T) * (x @ up.T).  x [T, in], gate and up [n, in] -> [T, n] f32."""
    return glu(linear(x, gate), linear(x, up), kind=kind)


def linear_add(x: Array, weight: Array, residual: Array, bias: Array | None = None) -> Array:
    """Dense layer plus residual: y = x @ weight.T + bias + residual.

    x [T, in], weight [out, in], residual [T, out], bias [out] -> [T, out] f32.
    """
    return add(linear(x, weight, bias), residual)


_ALL = (
    *(embedding, linear, rms_norm, rope_table, rope, attention, glu, add, mul, sigmoid, scale, scale_groups, moe),
    *(slice_, concat, take_rows, *WITH_STATE, *CHOOSING, latent_attention),
    *(add_rms_norm, linear_multi, linear_glu, linear_add),
)
FUNCTIONS: dict[str, Callable[..., Array | tuple[Array, ...]]] = {f.__name__.rstrip("_"): f for f in _ALL}


def evaluate(op: str, inputs: Sequence[Array | None], attrs: Mapping[str, Any]) -> tuple[Array, ...]:
    """Apply one operator of ops.py to arrays, in the order of its row. Absent optional inputs are None.

    `attention` takes `step`, `key_cache`, `value_cache` in `attrs` beside its own, those with a state `step`, `state`.
    """
    trimmed = list(inputs)
    while trimmed and trimmed[-1] is None and op != "linear_multi":
        trimmed.pop()
    with np.errstate(over="ignore", invalid="ignore"):  # IEEE 754 is the meaning: inf - inf is NaN, not an event
        result = FUNCTIONS[op](*trimmed, **attrs)
    return result if isinstance(result, tuple) else (result,)
