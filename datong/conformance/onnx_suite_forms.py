"""How a node test of each ONNX operator is said in our operator set, or why it cannot be: one function per operator.

Only names and layouts change on the way: leading dims become tokens, `[batch, heads, seq, dim]` becomes
`[tokens, heads * dim]`, a constant operand becomes a weight in a file. Everything that computes runs on the backend.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from datong.conformance.build import PartBuilder
from datong.conformance.onnx_suite import Form, NodeTest
from datong.conformance.parts import Scene
from datong.spec.program import ROWS, TOKENS, Dim

Array = NDArray[Any]

F32 = np.dtype(np.float32)
EXPANDED = "the function body of the operator, in primitive nodes; the test without `_expanded` runs instead"
_BROADCAST = "an operand is broadcast; operands of `{}` have one shape"


def forms(test: NodeTest) -> list[Form] | str:
    """The forms in which the test must pass, or the reason why it has none."""
    return EXPANDED if test.expanded else FORMS[test.op](test)


def not_f32(*arrays: Array) -> str | None:
    """A reason, if one of the operands is not f32."""
    odd = next((a for a in arrays if a.dtype != F32), None)
    return None if odd is None else f"activations are f32, the test gives {odd.dtype.name}"


def rows(array: Array) -> Array:
    """[…, n] -> [T, n]; a vector is one token."""
    return np.ascontiguousarray(array.reshape(-1, array.shape[-1]))


def whole(expected: Array) -> Callable[[Array], Array]:
    """The output in the shape of `expected`."""
    return lambda y: y.reshape(expected.shape)


def _one_step(inputs: dict[str, Array], **more: Array) -> Scene:
    """A scene of one sequence and one step, T from the first input or from `ids`."""
    tokens = len(more["ids"]) if "ids" in more else len(next(iter(inputs.values())))
    return Scene([inputs], [(0, tokens)], **more)  # type: ignore[arg-type]


# ---- elementwise ----------------------------------------------------------------------------------------------------


def _binary(op: str, first: str, second: str, output: str) -> Callable[[NodeTest], list[Form] | str]:
    def make(test: NodeTest) -> list[Form] | str:
        a, b = test.inputs[first], test.inputs[second]
        if reason := not_f32(a, b):
            return reason
        if a.shape != b.shape:
            return _BROADCAST.format(op)

        def build(p: PartBuilder) -> Scene:
            given = {"a": rows(a), "b": rows(b)}
            width = a.shape[-1]
            p.node(op, [p.input(name, (TOKENS, width)) for name in given], [("y", (TOKENS, width))])
            return _one_step(given)

        y = test.outputs[output]
        return [Form(op, build, "y", y, whole(y))]

    return make


def _sigmoid(test: NodeTest) -> list[Form] | str:
    x, y = test.inputs["X"], test.outputs["Y"]

    def build(p: PartBuilder) -> Scene:
        p.node("sigmoid", [p.input("x", (TOKENS, x.shape[-1]))], [("y", (TOKENS, x.shape[-1]))])
        return _one_step({"x": rows(x)})

    return not_f32(x) or [Form("sigmoid", build, "y", y, whole(y))]


def _swish(test: NodeTest) -> list[Form] | str:
    x, y = test.inputs["X"], test.outputs["Y"]
    if reason := not_f32(x) or _alpha(test):
        return reason
    shape: tuple[Dim, ...] = (TOKENS, x.shape[-1])

    def in_package(p: PartBuilder) -> Scene:
        gate = p.node("sigmoid", [p.input("x", shape)], [("gate", shape)])
        p.node("mul", ["x", gate], [("y", shape)])
        return _one_step({"x": rows(x)})

    def glu(p: PartBuilder) -> Scene:
        p.node("glu", [p.input("gate", shape), p.input("up", shape)], [("y", shape)], {"kind": "silu"})
        return _one_step({"gate": rows(x), "up": np.ones_like(rows(x))})

    return [
        Form("sigmoid, mul", in_package, "y", y, whole(y)),
        Form("glu, the other operand 1", glu, "y", y, whole(y)),
    ]


def _swiglu(test: NodeTest) -> list[Form] | str:
    gate, up = test.inputs["A"], test.inputs["B"]
    if reason := not_f32(gate, up) or _alpha(test):
        return reason
    y = next(iter(test.outputs.values()))
    shape: tuple[Dim, ...] = (TOKENS, gate.shape[-1])

    def build(p: PartBuilder) -> Scene:
        p.node("glu", [p.input("gate", shape), p.input("up", shape)], [("y", shape)], {"kind": "silu"})
        return _one_step({"gate": rows(gate), "up": rows(up)})

    return [Form("glu", build, "y", y, whole(y))]


def _alpha(test: NodeTest) -> str | None:
    alpha = test.attrs.get("alpha", 1.0)
    return None if alpha == 1.0 else f"alpha is {alpha:g}; `glu` has silu, whose alpha is 1"


# ---- matrices and tables --------------------------------------------------------------------------------------------


def _matmul(test: NodeTest) -> list[Form] | str:
    a, b = test.inputs["A"], test.inputs["B"]
    if reason := not_f32(a, b):
        return reason
    if b.ndim > 2:
        return "the second operand is a batch of matrices; `linear` has one matrix, a weight"
    return [_linear(a, b.reshape(b.shape[0], -1).T, test.outputs["Y"])]


def _linear(x: Array, weight: Array, y: Array, *, bias: Array | None = None, residual: Array | None = None) -> Form:
    """Of x […, in], weight [out, in], bias [out], residual like y."""
    out, width = weight.shape

    def build(p: PartBuilder) -> Scene:
        inputs = [p.input("x", (TOKENS, width)), p.stored("w", weight)]
        given = {"x": rows(x)}
        p.node("linear", inputs + ([] if bias is None else [p.stored("b", bias)]), [("dense", (TOKENS, out))])
        if residual is not None:
            p.node("add", ["dense", p.input("r", (TOKENS, out))], [("y", (TOKENS, out))])
            given["r"] = rows(residual)
        return _one_step(given)

    how = "linear" + ("" if bias is None else " with bias") + ("" if residual is None else ", add")
    return Form(how, build, "dense" if residual is None else "y", y, whole(y))


def _gemm(test: NodeTest) -> list[Form] | str:
    a, b, c = test.inputs["A"], test.inputs["B"], test.inputs.get("C")
    if reason := not_f32(a, b, *([] if c is None else [c])):
        return reason
    if test.attrs.get("transA", 0):
        return "the activations come transposed; tokens are rows in the operator set"
    if factors := [name for name in ("alpha", "beta") if test.attrs.get(name, 1.0) != 1.0]:
        return f"{factors[0]} is {test.attrs[factors[0]]:g}; `linear` has no factor"
    weight, y = (b if test.attrs.get("transB", 0) else b.T), test.outputs["Y"]
    if c is None:
        return [_linear(a, weight, y)]
    if c.size == len(weight):
        return [_linear(a, weight, y, bias=c.reshape(-1))]
    return [_linear(a, weight, y, residual=c)] if c.shape == y.shape else _BROADCAST.format("linear")


def _gather(test: NodeTest) -> list[Form] | str:
    data, indices, y = test.inputs["data"], test.inputs["indices"], test.outputs["output"]
    if reason := not_f32(data):
        return reason
    if test.attrs.get("axis", 0) != 0:
        return "gathers along another axis than the first; `embedding` and `take_rows` take rows"
    if indices.size and int(indices.min()) < 0:
        return "negative indices; ids and rows count from 0"
    table, ids = data.reshape(data.shape[0], -1), indices.reshape(-1).astype(np.int64)
    width = table.shape[1]

    def embedding(p: PartBuilder) -> Scene:
        p.node("embedding", [p.input("ids", (TOKENS,), "i64"), p.stored("w", table)], [("y", (TOKENS, width))])
        return _one_step({}, ids=ids)

    def take_rows(p: PartBuilder) -> Scene:
        p.node("take_rows", [p.input("x", (TOKENS, width)), p.input("rows", (ROWS,), "i64")], [("y", (ROWS, width))])
        return _one_step({"x": table}, rows=ids)

    return [Form("embedding", embedding, "y", y, whole(y)), Form("take_rows", take_rows, "y", y, whole(y))]


def _cast(test: NodeTest) -> list[Form] | str:
    x, y = test.inputs["input"], test.outputs["output"]
    if x.dtype not in (np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)) or y.dtype != F32:
        return "only weights are cast, from float16 or bfloat16 to float32"
    table = x.reshape(-1, x.shape[-1])

    def build(p: PartBuilder) -> Scene:
        inputs = [p.input("ids", (TOKENS,), "i64"), p.stored("w", table)]
        p.node("embedding", inputs, [("y", (TOKENS, table.shape[1]))])
        return _one_step({}, ids=np.arange(len(table)))

    return [Form("embedding of every row of a weight of that type", build, "y", y, whole(y))]


# ---- norm, position, slice ------------------------------------------------------------------------------------------


def _rms_norm(test: NodeTest) -> list[Form] | str:
    x, scale, y = test.inputs["X"], test.inputs["scale"], test.outputs["Y"]
    if reason := not_f32(x, scale):
        return reason
    width = math.prod(x.shape[test.attrs.get("axis", -1) :])
    if scale.size != width:
        return _BROADCAST.format("rms_norm")
    attrs = {"eps": float(test.attrs.get("epsilon", 1e-5)), "offset": 0.0}

    def build(p: PartBuilder) -> Scene:
        inputs = [p.input("x", (TOKENS, width)), p.stored("w", scale.reshape(-1))]
        p.node("rms_norm", inputs, [("y", (TOKENS, width))], attrs)
        return _one_step({"x": np.ascontiguousarray(x.reshape(-1, width))})

    return [Form("rms_norm, the normalised dims as one", build, "y", y, whole(y))]


def _trigonometric(output: str) -> Callable[[NodeTest], list[Form] | str]:
    def make(test: NodeTest) -> list[Form] | str:
        (x,), (y,) = test.inputs.values(), test.outputs.values()
        if reason := not_f32(x):
            return reason
        shape: tuple[Dim, ...] = (TOKENS, x.size)

        def build(p: PartBuilder) -> Scene:
            inputs = [p.input("positions", (TOKENS,), "i64"), p.const("inv_freq", x.reshape(-1))]
            p.node("rope_table", inputs, [("cos", shape), ("sin", shape)], {"scale": 1.0})
            return Scene([{}], [(0, 1)], positions=np.ones(1, np.int64))

        return [Form("rope_table at position 1, the operand as frequencies", build, output, y, whole(y))]

    return make


def _rope(test: NodeTest) -> list[Form] | str:
    x, cos, sin, y = test.inputs["X"], test.inputs["cos_cache"], test.inputs["sin_cache"], test.outputs["Y"]
    if reason := not_f32(x, cos, sin):
        return reason
    heads = x.shape[1] if x.ndim == 4 else int(test.attrs["num_heads"])
    packed = x.transpose(0, 2, 1, 3) if x.ndim == 4 else x
    tokens = np.ascontiguousarray(packed.reshape(x.shape[0] * packed.shape[1], -1))
    half, positions = cos.shape[-1], test.inputs.get("position_ids")
    attrs = {"num_heads": heads, "interleaved": int(test.attrs.get("interleaved", 0))}

    def build(p: PartBuilder) -> Scene:
        shape: tuple[Dim, ...] = (TOKENS, tokens.shape[1])
        p.input("x", shape)
        if positions is not None:
            p.input("ids", (TOKENS,), "i64")
            for name, table in (("cos", cos), ("sin", sin)):
                p.node("embedding", ["ids", p.stored(f"{name}_cache", table)], [(name, (TOKENS, half))])
        else:
            p.input("cos", (TOKENS, half))
            p.input("sin", (TOKENS, half))
        p.node("rope", ["x", "cos", "sin"], [("y", shape)], attrs)
        if positions is not None:
            return _one_step({"x": tokens}, ids=positions.reshape(-1).astype(np.int64))
        return _one_step({"x": tokens, "cos": rows(cos), "sin": rows(sin)})

    def shaped(flat: Array) -> Array:
        return flat.reshape(packed.shape).transpose(0, 2, 1, 3) if x.ndim == 4 else flat.reshape(x.shape)

    how = "rope" if positions is None else "embedding of cos and sin by position_ids, rope"
    return [Form(how, build, "y", y, shaped)]


def _slice(test: NodeTest) -> list[Form] | str:
    x, y = test.inputs["data"], test.outputs["output"]
    if reason := not_f32(x):
        return reason
    starts, ends = test.inputs["starts"].tolist(), test.inputs["ends"].tolist()
    axes = test.inputs.get("axes", np.arange(len(starts))).tolist()
    if any(step != 1 for step in test.inputs.get("steps", np.ones(1)).tolist()):
        return "steps other than 1; `slice` keeps a run of channels"
    if not y.size:
        return "keeps nothing; `slice` keeps at least one channel"
    cuts = {
        axis % x.ndim: slice(*bounds).indices(x.shape[axis])[:2]
        for axis, *bounds in zip(axes, starts, ends, strict=True)
    }
    cuts = {axis: cut for axis, cut in sorted(cuts.items()) if cut != (0, x.shape[axis])}
    lead = math.prod(x.shape[: min(cuts, default=0)])  # these dims stay whole: they are the tokens

    def build(p: PartBuilder) -> Scene:
        shape = list(x.shape)
        name = p.input("x", (TOKENS, x.size // lead))
        for number, (axis, (start, end)) in enumerate(cuts.items()):
            inner = math.prod(shape[axis + 1 :])
            attrs = {"group": shape[axis] * inner, "start": start * inner, "length": (end - start) * inner}
            shape[axis] = end - start
            last = "y" if number == len(cuts) - 1 else f"cut{number}"
            name = p.node("slice", [name], [(last, (TOKENS, math.prod(shape) // lead))], attrs)
        return _one_step({"x": np.ascontiguousarray(x.reshape(lead, -1))})

    return [Form("one slice per axis, inner dims as one", build, "y", y, whole(y))]


# ---- the table ------------------------------------------------------------------------------------------------------


def _never(reason: str) -> Callable[[NodeTest], list[Form] | str]:
    return lambda test: reason


def _attention(test: NodeTest) -> list[Form] | str:
    from datong.conformance.onnx_suite_attention import attention

    return attention(test)


_LAYOUT = "dims are renamed or permuted; the compiler takes these nodes away, no operator runs"
FORMS: dict[str, Callable[[NodeTest], list[Form] | str]] = {
    "Add": _binary("add", "A", "B", "C"),
    "Attention": _attention,
    "Cast": _cast,
    "Cos": _trigonometric("cos"),
    "DequantizeLinear": _never(
        "weights have blocks of 16 or 32 along `in` with f16 scales (spec/formats.py); the suite's tests have none such"
    ),
    "Gather": _gather,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Mul": _binary("mul", "A", "B", "C"),
    "RMSNormalization": _rms_norm,
    "Reshape": _never(_LAYOUT),
    "RotaryEmbedding": _rope,
    "Sigmoid": _sigmoid,
    "Sin": _trigonometric("sin"),
    "Slice": _slice,
    "Sub": _never("in a package it subtracts the min of quantised weights, inside `linear` and `embedding`"),
    "SwiGLU": _swiglu,
    "Swish": _swish,
    "Transpose": _never(_LAYOUT),
    "Unsqueeze": _never(_LAYOUT),
}
