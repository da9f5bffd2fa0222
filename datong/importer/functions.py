"""Operators that ONNX lacks, as model-local functions of domain `datong` with bodies of stock ONNX.

A call carries the operator's attributes as spec/ops.py names them, and the overload that is the body for just these
attributes. Whoever knows the function (our compiler, a vendor's) reads the attributes; everyone else inlines the body.

    GLU(gate, up) -> y                                                        spec `glu`, for the kinds other than silu
    MoE(x, logits, gate, up, down, select_bias, gate_bias, up_bias, down_bias) -> y                           spec `moe`
    Attention(q, k, v, past_key, past_value, sinks, slopes) -> y, present_key, present_value            spec `attention`
    CausalConv, GatedDelta, LinearAttention                                                       functions_state.py
    SelectKeys, SparseAttention                                                                  functions_sparse.py
    LatentAttention                                                                              functions_latent.py
    DequantizeTiles                                                                               functions_tiles.py

Weights come as f32, `[E, out, in]`; x `[batch, seq, n]`. The body of MoE runs every expert on every token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from datong.importer import functions_latent as latent
from datong.importer import functions_sparse as sparse
from datong.importer import functions_state as state
from datong.importer import functions_tiles as tiles
from datong.importer.body import DOMAIN, Attrs, Body, overload

MOE_INPUTS = ("x", "logits", "gate", "up", "down", "select_bias", "gate_bias", "up_bias", "down_bias")
GLU_INPUTS = ("gate", "up")
ATTENTION_INPUTS = ("q", "k", "v", "past_key", "past_value", "sinks", "slopes")


def moe(attributes: Attrs, present: Sequence[bool]) -> ir.Function:
    """The body of MoE for these attributes; `present` says which of MOE_INPUTS a call gives."""
    b = Body(MOE_INPUTS)
    given = {name: b.inputs[name] if there else None for name, there in zip(MOE_INPUTS, present, strict=True)}
    weights = _routing(b, given["logits"], given["select_bias"], attributes)  # [batch, seq, E], 0 where not chosen
    x = b("Reshape", given["x"], b("Concat", b.ints(1, -1), b.size(b.inputs["x"], 2), axis=0))  # [1, T, n]
    first = _experts(b, x, given["gate"], given["gate_bias"])  # [E, T, m]
    if given["up"] is not None:
        second = _experts(b, x, given["up"], given["up_bias"])
    elif attributes["order"] == "halves":
        first, second = b("Split", first, outputs=2, axis=-1, num_outputs=2)
    else:
        end = b.ints(np.iinfo(np.int64).max)
        both = first
        first, second = (b("Slice", both, b.ints(start), end, b.ints(-1), b.ints(2)) for start in (0, 1))
    inner = KINDS[str(attributes["kind"])](b, first, second, float(attributes["limit"]), float(attributes["alpha"]))
    y = _experts(b, inner, given["down"], given["down_bias"])  # [E, T, n]
    flat = b("Reshape", weights, b("Concat", b.ints(-1), b.size(weights, 2), axis=0))  # [T, E]
    each = b("Unsqueeze", b("Transpose", flat, perm=[1, 0]), b.ints(-1))  # [E, T, 1]
    total = b("ReduceSum", b("Mul", y, each), b.ints(0), keepdims=0)
    result = b("Reshape", total, b("Shape", b.inputs["x"]))
    return b.function("MoE", overload(attributes, present), [result], attributes)


def _experts(b: Body, x: ir.Value, weight: ir.Value | None, bias: ir.Value | None) -> ir.Value:
    """All experts: x [1 or E, T, in], weight [E, out, in], bias [E, out] -> [E, T, out]."""
    y: ir.Value = b("MatMul", x, b("Transpose", weight, perm=[0, 2, 1]))
    return y if bias is None else b("Add", y, b("Unsqueeze", bias, b.ints(1)))


def _routing(b: Body, logits: ir.Value | None, select: ir.Value | None, attributes: Attrs) -> ir.Value:
    """spec/reference.py `route`, as a dense [batch, seq, E]."""
    score = b("Softmax", logits, axis=-1) if attributes["score"] == "softmax" else b("Sigmoid", logits)
    choice = score if select is None else b("Add", score, select)
    groups, top_groups = int(attributes["groups"]), int(attributes["top_groups"])
    if groups > 1:
        members = b("Reshape", choice, b.ints(0, 0, groups, -1))
        pair, _ = b("TopK", members, b.ints(2), outputs=2, axis=-1)
        best = b("ReduceSum", pair, b.ints(-1), keepdims=0)
        _, chosen = b("TopK", best, b.ints(top_groups), outputs=2, axis=-1)
        nothing = b("Mul", best, b.real(0.0))
        ones = b("Add", b("GatherElements", nothing, chosen, axis=-1), b.real(1.0))
        marks = b("ScatterElements", nothing, chosen, ones, axis=-1)
        allowed = b("Unsqueeze", b("Greater", marks, b.real(0.5)), b.ints(-1))
        choice = b("Reshape", b("Where", allowed, members, b.real(-np.inf)), b("Shape", score))
    _, index = b("TopK", choice, b.ints(int(attributes["top_k"])), outputs=2, axis=-1)
    weights = b("GatherElements", score, index, axis=-1)
    if attributes["renorm"]:
        total = b("ReduceSum", weights, b.ints(-1), keepdims=1)
        weights = b("Div", weights, b("Add", total, b.real(1e-20 if attributes["score"] == "sigmoid" else 0.0)))
    weights = b("Mul", weights, b.real(float(attributes["scale"])))
    dense: ir.Value = b("ScatterElements", b("Mul", score, b.real(0.0)), index, weights, axis=-1)
    return dense


# ---- kinds of glu -------------------------------------------------------------------------------------------------


def _silu(b: Body, gate: ir.Value, up: ir.Value, limit: float, alpha: float) -> ir.Value:
    y: ir.Value = b("Mul", b("Mul", gate, b("Sigmoid", gate)), up)
    return y


def _gelu_tanh(b: Body, gate: ir.Value, up: ir.Value, limit: float, alpha: float) -> ir.Value:
    y: ir.Value = b("Mul", b("Gelu", gate, approximate="tanh"), up)
    return y


def _silu_clamp(b: Body, gate: ir.Value, up: ir.Value, limit: float, alpha: float) -> ir.Value:
    silu = b("Min", b("Mul", gate, b("Sigmoid", gate)), b.real(limit))
    y: ir.Value = b("Mul", silu, b("Clip", up, b.real(-limit), b.real(limit)))
    return y


def _oai(b: Body, gate: ir.Value, up: ir.Value, limit: float, alpha: float) -> ir.Value:
    low = b("Min", gate, b.real(limit))
    swish = b("Mul", low, b("Sigmoid", b("Mul", low, b.real(alpha))))
    y: ir.Value = b("Mul", swish, b("Add", b("Clip", up, b.real(-limit), b.real(limit)), b.real(1.0)))
    return y


KINDS: dict[str, Callable[[Body, ir.Value, ir.Value, float, float], ir.Value]] = {
    "silu": _silu,
    "gelu_tanh": _gelu_tanh,
    "silu_clamp": _silu_clamp,
    "oai": _oai,
}


def glu(attributes: Attrs, present: Sequence[bool]) -> ir.Function:
    """The body of GLU for these attributes."""
    b = Body(GLU_INPUTS)
    settings = str(attributes["kind"]), float(attributes["limit"]), float(attributes["alpha"])
    y = KINDS[settings[0]](b, b.inputs["gate"], b.inputs["up"], *settings[1:])
    return b.function("GLU", overload(attributes, present), [y], attributes)


# ---- attention ----------------------------------------------------------------------------------------------------


def attention(attributes: Attrs, present: Sequence[bool]) -> ir.Function:
    """The body of Attention for these attributes: scores, what distance and sinks do to them, softmax, values."""
    b = Body(ATTENTION_INPUTS)
    heads, kv_heads, window = (int(attributes[name]) for name in ("num_heads", "num_kv_heads", "window"))
    given = {name: b.inputs[name] if there else None for name, there in zip(ATTENTION_INPUTS, present, strict=True)}
    q, k, v = (_heads(b, given[name], count) for name, count in (("q", heads), ("k", kv_heads), ("v", kv_heads)))
    keys = b("Concat", given["past_key"], k, axis=2)  # [batch, Hkv, total, D]
    values = b("Concat", given["past_value"], v, axis=2)
    every_key, every_value = (_repeat(b, a, heads // kv_heads, heads) for a in (keys, values))
    score = b("MatMul", q, b("Transpose", every_key, perm=[0, 1, 3, 2]))
    score = b("Mul", score, b.real(float(attributes["scale"])))  # [batch, Hq, seq, total]
    if cap := float(attributes["softcap"]):
        score = b("Mul", b("Tanh", b("Div", score, b.real(cap))), b.real(cap))
    zero, one = b("Squeeze", b.ints(0)), b("Squeeze", b.ints(1))
    past, new = (b("Squeeze", b.size(a, 2)) for a in (b.inputs["past_key"], k))
    total = b("Add", past, new)
    i = b("Unsqueeze", b("Range", past, total, one), b.ints(1))
    behind = b("Sub", i, b("Unsqueeze", b("Range", zero, total, one), b.ints(0)))  # [seq, total]
    seen = b("GreaterOrEqual", behind, zero)
    if window:
        seen = b("And", seen, b("Less", behind, b("Squeeze", b.ints(window))))
    if given["slopes"] is not None:
        far = b("Cast", b("Max", behind, zero), to=ir.DataType.FLOAT)
        far = b("Sqrt", far) if attributes["bias"] == "sqrt_alibi" else far
        score = b("Sub", score, b("Mul", b("Reshape", given["slopes"], b.ints(heads, 1, 1)), far))
    score = b("Where", seen, score, b.real(-np.inf))
    weights = _softmax(b, score, given["sinks"], heads)
    y = b("Transpose", b("MatMul", weights, every_value), perm=[0, 2, 1, 3])
    packed = b("Reshape", y, b.ints(0, 0, -1))
    return b.function("Attention", overload(attributes, present), [packed, keys, values], attributes)


def _heads(b: Body, x: ir.Value | None, count: int) -> ir.Value:
    """[batch, seq, count * D] -> [batch, count, seq, D]."""
    y: ir.Value = b("Transpose", b("Reshape", x, b.ints(0, 0, count, -1)), perm=[0, 2, 1, 3])
    return y


def _repeat(b: Body, x: ir.Value, group: int, heads: int) -> ir.Value:
    """[batch, Hkv, total, D] -> [batch, Hq, total, D], each head `group` times."""
    wide = b("Expand", b("Unsqueeze", x, b.ints(2)), b.ints(1, 1, group, 1, 1))
    shape = b("Concat", b.size(x, 0), b.ints(heads), b("Shape", x, start=2), axis=0)
    y: ir.Value = b("Reshape", wide, shape)
    return y


def _softmax(b: Body, score: ir.Value, sinks: ir.Value | None, heads: int) -> ir.Value:
    """Over the keys; a sink takes its share and goes."""
    if sinks is None:
        plain: ir.Value = b("Softmax", score, axis=-1)
        return plain
    column = b("Reshape", sinks, b.ints(1, heads, 1, 1))
    shape = b("Concat", b("Shape", score, end=3), b.ints(1), axis=0)
    weights = b("Softmax", b("Concat", score, b("Expand", column, shape), axis=-1), axis=-1)
    y: ir.Value = b("Slice", weights, b.ints(0), b.ints(-1), b.ints(-1))
    return y


@dataclass(frozen=True)
class Known:
    """A function that we author and recognise."""

    inputs: tuple[str, ...]
    attributes: dict[str, type]
    body: Callable[[Attrs, Sequence[bool]], ir.Function]


_KIND = {"kind": str, "limit": float, "alpha": float}
_COUNTS = {"num_heads": int, "groups": int, "block": int, "scale": float}
KNOWN: dict[str, Known] = {
    "SelectKeys": Known(sparse.SELECT_INPUTS, {**_COUNTS, "top_k": int, "local": int, "kind": str}, sparse.select_keys),
    "SparseAttention": Known(
        sparse.SPARSE_INPUTS,
        {"num_heads": int, "num_kv_heads": int, "groups": int, "block": int, "scale": float},
        sparse.sparse_attention,
    ),
    "LatentAttention": Known(
        latent.LATENT_INPUTS, {"num_heads": int, "plain": int, "scale": float}, latent.latent_attention
    ),
    "GLU": Known(GLU_INPUTS, _KIND, glu),
    "MoE": Known(
        MOE_INPUTS,
        {
            "top_k": int,
            "score": str,
            "renorm": int,
            "scale": float,
            "groups": int,
            "top_groups": int,
            "order": str,
            **_KIND,
        },
        moe,
    ),
    "Attention": Known(
        ATTENTION_INPUTS,
        {"num_heads": int, "num_kv_heads": int, "scale": float, "window": int, "softcap": float, "bias": str},
        attention,
    ),
    "CausalConv": Known(state.CONV_INPUTS, {"kind": str, "channels": int}, state.causal_conv),
    "GatedDelta": Known(
        state.DELTA_INPUTS, {"num_k_heads": int, "num_v_heads": int, "scale": float, "eps": float}, state.gated_delta
    ),
    "LinearAttention": Known(state.LINEAR_INPUTS, {"num_heads": int, "scale": float}, state.linear_attention),
    "DequantizeTiles": Known(
        tiles.TILES_INPUTS, {"rows": int, "columns": int, "table": str, "divide": int}, tiles.dequantize_tiles
    ),
}


def is_ours(function: ir.Function, call: ir.Node) -> bool:
    """Is this the body that we would write for the attributes of `call`? If so, its operator may take its place."""
    known = KNOWN.get(function.name)
    if function.domain != DOMAIN or known is None or len(function.inputs) != len(known.inputs):
        return False
    present = [i < len(call.inputs) and call.inputs[i] is not None for i in range(len(known.inputs))]
    try:
        attributes = {name: kind(call.attributes[name].value) for name, kind in known.attributes.items()}
        wanted = known.body(attributes, present)
    except (KeyError, TypeError, ValueError):
        return False
    return _text(function) == _text(wanted)


def _text(function: ir.Function) -> bytes:
    proto = ir.to_proto(function)
    proto.ClearField("value_info")
    proto.ClearField("metadata_props")
    proto.ClearField("doc_string")
    return bytes(proto.SerializeToString(deterministic=True))
