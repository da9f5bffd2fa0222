"""Shapes of stock ONNX nodes, as far as decoder graphs need them: one rule per operator, symbols kept as names.

A rule returns the output shapes, or None where it cannot tell; `infer_shapes` then leaves `dims` unset, and the node
is refused later if it matters. Source: ONNX operator pages, opset 27.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import onnx_ir as ir

from datong.compiler import match
from datong.compiler.match import Dims, int_attr
from datong.importer.functions import KNOWN

Shapes = list[Dims | None]
Rule = Callable[[ir.Node, list[Dims | None]], Shapes | None]

SAME = (
    "Cast", "Identity", "Sigmoid", "Tanh", "Cos", "Sin", "Neg", "Abs", "Exp", "Log", "Sqrt", "Erf", "Relu", "Gelu",
    "Swish", "Softmax", "LogSoftmax", "RMSNormalization", "LayerNormalization", "RotaryEmbedding", "DequantizeLinear",
    "Clip", "CumSum", "Reciprocal", "HardSwish", "Softplus",
)  # fmt: skip
BROADCAST = ("Add", "Sub", "Mul", "Div", "Pow", "Min", "Max")


def broadcast(a: Dims, b: Dims) -> Dims | None:
    """NumPy's rule; two different symbols do not broadcast."""
    size = max(len(a), len(b))
    left, right = (1,) * (size - len(a)) + a, (1,) * (size - len(b)) + b
    out: list[int | str] = []
    for x, y in zip(left, right, strict=True):
        if x != y and 1 not in (x, y):
            return None
        out.append(y if x == 1 else x)
    return tuple(out)


def reshape(shape: Dims, target: list[int], allow_zero: bool = False) -> Dims | None:
    """The shape after Reshape; -1 only where it is a whole number, so that symbols stay single dims."""
    if allow_zero and 0 in target:
        return None
    out: list[int | str] = []
    for i, want in enumerate(target):
        if want == 0 and i >= len(shape):
            return None
        out.append(shape[i] if want == 0 else want)
    left, right = list(shape), [d for d in out if d != -1]
    for dim in [d for d in right if isinstance(d, str)]:
        if dim not in left:
            return None
        left.remove(dim)
    symbols = [d for d in left if isinstance(d, str)]
    have = math.prod(d for d in left if isinstance(d, int))
    want = math.prod(d for d in right if isinstance(d, int))
    if out.count(-1) == 1:
        if len(symbols) == 1 and have == want:
            return tuple(symbols[0] if d == -1 else d for d in out)
        return None if symbols or not want or have % want else tuple(have // want if d == -1 else d for d in out)
    return tuple(out) if not symbols and have == want and -1 not in out else None


def _reshape(node: ir.Node, ins: Shapes) -> Shapes | None:
    target = match.ints(match.operand(node, 1))
    if ins[0] is None or target is None:
        return None
    return [reshape(ins[0], target, int_attr(node, "allowzero", 0) == 1)]


def _matmul(node: ir.Node, ins: Shapes) -> Shapes | None:
    a, b = ins
    if a is None or b is None or len(a) < 2 or len(b) < 2 or a[-1] != b[-2]:
        return None
    lead = broadcast(a[:-2], b[:-2])
    return None if lead is None else [(*lead, a[-2], b[-1])]


def _transpose(node: ir.Node, ins: Shapes) -> Shapes | None:
    if ins[0] is None:
        return None
    found = node.attributes.get("perm")
    perm = list(found.as_ints()) if found is not None else list(range(len(ins[0])))[::-1]
    return [tuple(ins[0][i] for i in perm)] if sorted(perm) == list(range(len(ins[0]))) else None


def _gather(node: ir.Node, ins: Shapes) -> Shapes | None:
    data, index = ins
    if data is None or index is None or not data:
        return None
    axis = int_attr(node, "axis", 0) % len(data)
    return [data[:axis] + index + data[axis + 1 :]]


def _unsqueeze(node: ir.Node, ins: Shapes) -> Shapes | None:
    axes = match.ints(match.operand(node, 1))
    if ins[0] is None or axes is None:
        return None
    rank = len(ins[0]) + len(axes)
    places = {a % rank for a in axes}
    rest = iter(ins[0])
    return [tuple(1 if i in places else next(rest) for i in range(rank))] if len(places) == len(axes) else None


def _slice(node: ir.Node, ins: Shapes) -> Shapes | None:
    if ins[0] is None:
        return None
    cut = slice_bounds(node, ins[0])
    if cut is None:
        return None
    axis, start, end = cut
    return [(*ins[0][:axis], end - start, *ins[0][axis + 1 :])]


def slice_bounds(node: ir.Node, shape: Dims) -> tuple[int, int, int] | None:
    """(axis, start, end) of a Slice along one axis of known size with step 1, else None."""
    starts, ends = match.ints(match.operand(node, 1)), match.ints(match.operand(node, 2))
    axes = match.ints(match.operand(node, 3)) if match.operand(node, 3) is not None else [0]
    steps = match.ints(match.operand(node, 4)) if match.operand(node, 4) is not None else [1]
    if starts is None or ends is None or axes is None or steps != [1] or not len(starts) == len(ends) == len(axes) == 1:
        return None
    axis = axes[0] % len(shape) if shape else 0
    size = shape[axis] if shape else None
    if not isinstance(size, int):
        return None
    start, end, _ = slice(starts[0], ends[0]).indices(size)
    return (axis, start, end) if start < end else None


def _concat(node: ir.Node, ins: Shapes) -> Shapes | None:
    first = ins[0]
    if first is None or not first:
        return None
    axis, total = int_attr(node, "axis", 0) % len(first), 0
    for one in ins:
        size = None if one is None or len(one) != len(first) else one[axis]
        if one is None or not isinstance(size, int) or one[:axis] + one[axis + 1 :] != first[:axis] + first[axis + 1 :]:
            return None
        total += size
    return [(*first[:axis], total, *first[axis + 1 :])]


def _attention(node: ir.Node, ins: Shapes) -> Shapes | None:
    q, _, v = ins[:3]
    heads, kv_heads = int_attr(node, "q_num_heads", 0), int_attr(node, "kv_num_heads", 0)
    if (
        q is None
        or v is None
        or len(q) != 3
        or not heads
        or not kv_heads
        or not isinstance(v[2], int)
        or v[2] % kv_heads
    ):
        return None
    return [(q[0], q[1], v[2] // kv_heads * heads), *([None] * (len(node.outputs) - 1))]


def _broadcast(node: ir.Node, ins: Shapes) -> Shapes | None:
    a, b = ins
    return None if a is None or b is None else [broadcast(a, b)]


def _same(node: ir.Node, ins: Shapes) -> Shapes | None:
    return [ins[0], *([None] * (len(node.outputs) - 1))]


RULES: dict[str, Rule] = {
    **dict.fromkeys(SAME, _same),
    **dict.fromkeys(BROADCAST, _broadcast),
    "Reshape": _reshape, "MatMul": _matmul, "Transpose": _transpose, "Gather": _gather, "Unsqueeze": _unsqueeze,
    "Slice": _slice, "Concat": _concat, "Attention": _attention,
}  # fmt: skip


def _function(node: ir.Node, ins: Shapes) -> Shapes | None:
    """Of a function of ours: GLU, MoE and CausalConv keep the shape of their first input, states that of their v."""
    if node.op_type in ("GatedDelta", "LinearAttention"):
        return [ins[2], None]
    if node.op_type == "SelectKeys":
        width = int_attr(node, "groups", 0) * int_attr(node, "top_k", 0)
        return [(*ins[0][:2], width), None] if ins[0] is not None and width else None
    if node.op_type == "LatentAttention":
        q, weight, heads, plain = ins[0], ins[3], int_attr(node, "num_heads", 0), int_attr(node, "plain", 0)
        if q is None or weight is None or not heads or not isinstance(weight[0], int):
            return None
        return [(*q[:2], weight[0] - heads * plain), None]
    if node.op_type not in ("Attention", "SparseAttention"):
        return [ins[0], *([None] * (len(node.outputs) - 1))]
    q, v, heads, kv_heads = ins[0], ins[2], int_attr(node, "num_heads", 0), int_attr(node, "num_kv_heads", 0)
    if (
        q is None
        or v is None
        or len(q) != 3
        or not isinstance(v[2], int)
        or not heads
        or not kv_heads
        or v[2] % kv_heads
    ):
        return None
    return [(q[0], q[1], v[2] // kv_heads * heads), None, None]


def infer(node: ir.Node) -> Shapes:
    """Output shapes of one node from the `dims` of its inputs; None where no rule can tell."""
    unknown: Shapes = [None] * len(node.outputs)
    rule = RULES.get(node.op_type) if match.is_op(node, node.op_type) else None
    if node.domain == match.DOMAIN and node.op_type in KNOWN:
        rule = _function
    if rule is None:
        return unknown
    try:
        return rule(node, [match.dims(value) for value in node.inputs]) or unknown
    except (ValueError, IndexError, TypeError):  # a foreign node with too few inputs or odd attributes
        return unknown
