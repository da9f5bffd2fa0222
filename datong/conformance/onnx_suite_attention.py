"""Node tests of Attention as steps over a paged cache.

Our attention is causal: the last token of a sequence of n tokens sees n keys (or the last `window` of them). So a query
that sees the first n keys of its batch entry is the last token of a sequence of n tokens, and the test is claimed where
each query sees such a run. Where neighbours see one key more each (causal, prompt or continued), a batch entry is one
sequence, its earlier keys are a step before; otherwise (not causal) each query is a sequence of its own: decoding.

`present_key` and `present_value` are the cache itself: nothing reads them out of a backend, later queries read them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from datong.conformance.build import PartBuilder
from datong.conformance.onnx_suite import Form, NodeTest
from datong.conformance.onnx_suite_forms import not_f32
from datong.conformance.parts import Scene
from datong.spec.program import TOKENS, Attr, CacheSpec

Array = NDArray[Any]
_FLOAT = 1  # onnx.TensorProto.FLOAT


def attention(test: NodeTest) -> list[Form] | str:
    """The one form of the test, or why it has none."""
    given = test.inputs
    if reason := not_f32(given["Q"], given["K"], given["V"]) or _outside(test):
        return reason
    q, k, v = (_tokens_first(test, name) for name in ("Q", "K", "V"))
    past = 0
    if "past_key" in given:
        past = given["past_key"].shape[2]
        k = np.concatenate([given["past_key"].transpose(0, 2, 1, 3), k], axis=1)
        v = np.concatenate([given["past_value"].transpose(0, 2, 1, 3), v], axis=1)
    seen = _keys_seen(test, q, k, past)
    if isinstance(seen, str):
        return seen
    scale = float(test.attrs.get("scale", q.shape[3] ** -0.5))
    left = int(test.attrs.get("left_window_size", -1))
    attrs: dict[str, Attr] = {
        "layer": 0, "num_heads": q.shape[2], "num_kv_heads": k.shape[2], "scale": scale, "window": left + 1,
        "softcap": float(test.attrs.get("softcap", 0.0)),
    }  # fmt: skip
    together = bool((np.diff(seen, axis=1) == 1).all()) and q.shape[1] > 1
    y = test.outputs["Y"]

    def shaped(flat: Array) -> Array:
        packed = flat.reshape(*q.shape[:3], v.shape[3])
        return packed.transpose(0, 2, 1, 3) if y.ndim == 4 else packed.reshape(y.shape)

    how = "attention, a sequence per batch entry" if together else "attention, a sequence per query"
    return [Form(how, lambda p: _scene(p, q, k, v, seen, attrs, together=together), "y", y, shaped)]


def _outside(test: NodeTest) -> str | None:
    """What the operator has no input, output or attribute for."""
    attrs = test.attrs
    if "attn_mask" in test.inputs:
        return "an explicit mask; `attention` has causality and a window only"
    if "qk_matmul_output" in test.outputs:
        return "asks for the scores; `attention` gives the result only"
    if attrs.get("softmax_precision", _FLOAT) != _FLOAT:
        return f"softmax_precision is {attrs['softmax_precision']}; `attention` promises f32"
    if attrs.get("right_window_size", -1) > 0:
        return "a window to the right; `attention` has one to the left only"
    if attrs.get("left_window_size", -1) >= 0 and not _causal(test):
        return "a window to the left without causality; the window of `attention` ends at the query"
    return None


def _causal(test: NodeTest) -> bool:
    return bool(test.attrs.get("is_causal", 0)) or test.attrs.get("right_window_size", -1) == 0


def _tokens_first(test: NodeTest, name: str) -> Array:
    """Q, K or V as [batch, tokens, heads, dim]."""
    array: Array = test.inputs[name]
    if array.ndim == 4:
        return array.transpose(0, 2, 1, 3)
    heads = int(test.attrs["q_num_heads" if name == "Q" else "kv_num_heads"])
    return array.reshape(*array.shape[:2], heads, -1)


def _keys_seen(test: NodeTest, q: Array, k: Array, past: int) -> Array | str:
    """How many keys, from the first on, each query sees: [batch, queries]; or why that does not say it all.

    Source: ONNX Attention-25: with causality query i sees keys j <= i + offset; offset is `past`, or
    nonpad_kv_seqlen - queries for a cache outside.
    """
    batch, queries = q.shape[:2]
    total = np.full((batch, 1), k.shape[1])
    offset = np.full((batch, 1), past)
    if "nonpad_kv_seqlen" in test.inputs:
        total = test.inputs["nonpad_kv_seqlen"].reshape(batch, 1)
        offset = total - queries
    if not _causal(test):
        return np.broadcast_to(total, (batch, queries))
    reach = offset + np.arange(queries) + 1
    if int(reach.min()) < 1:
        return "a query that sees no key (zeros in ONNX); a token of a sequence sees at least itself"
    if test.attrs.get("left_window_size", -1) >= 0 and bool((reach > total).any()):
        return "queries after the last key, under a window; a token of a sequence has a key"
    return np.asarray(np.minimum(reach, total))


def _scene(
    p: PartBuilder, q: Array, k: Array, v: Array, seen: Array, attrs: dict[str, Attr], *, together: bool
) -> Scene:
    """Sequences (keys before, queries) in the order of the queries, with the arrays of both steps."""
    heads = k.shape[2]
    widths = {"q": q.shape[2] * q.shape[3], "k": heads * k.shape[3], "v": heads * v.shape[3]}
    inputs = [p.input(name, (TOKENS, width)) for name, width in widths.items()]
    p.node("attention", inputs, [("y", (TOKENS, q.shape[2] * v.shape[3]))], attrs)
    window = int(str(attrs["window"]))
    p.caches.append(CacheSpec(0, "window" if window else "full", heads, k.shape[3], v.shape[3], window))
    count = q.shape[1] if together else 1
    sequences: list[tuple[int, int]] = []
    before: dict[str, list[Array]] = {"q": [], "k": [], "v": []}
    now: dict[str, list[Array]] = {"q": [], "k": [], "v": []}
    for entry in range(len(q)):
        for first in range(0, q.shape[1], count):
            end = int(seen[entry, first + count - 1])
            sequences.append((end - count, count))
            before["q"].append(np.zeros((end - count, widths["q"]), np.float32))
            now["q"].append(q[entry, first : first + count].reshape(count, -1))
            for name, array in (("k", k), ("v", v)):
                flat = array[entry, :end].reshape(end, -1)
                before[name].append(flat[:-count])
                now[name].append(flat[-count:])
    steps = [before, now] if any(past for past, _ in sequences) else [now]
    return Scene([{name: np.concatenate(parts) for name, parts in step.items()} for step in steps], sequences)
