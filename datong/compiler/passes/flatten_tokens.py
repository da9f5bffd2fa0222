"""`[batch, seq, n]` becomes `[T, n]`: a renaming of the two leading dims, allowed only where no node looks at them.

Requires: all recognisers.
Rules:
  1. a `datong` node other than attention is row-wise by its row in spec/ops.py; its activations must be
     `[batch, seq, n]`; attention looks across tokens through its cache only;
  2. any other node is refused: because it mixes tokens, because a recogniser noted why, or because the operator set
     has no row for it;
  3. a node that hangs on refused ones is not blamed, nor one that computes on weights alone, but for
     DequantizeLinear: bind_block_weights knows better than its reader what is wrong.
Ensures: every node is of domain `datong`, every activation has `dims` ("T", n).
"""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from datong.compiler import match
from datong.errors import Unsupported
from datong.spec.ops import OPS, OPSET_VERSION
from datong.spec.program import TOKENS

WHERE = "compile"
AXIS_DEFAULT = {"Softmax": -1, "LogSoftmax": -1, "LayerNormalization": -1, "RMSNormalization": -1, "TopK": -1}
AXIS_OPS = (*AXIS_DEFAULT, "Concat", "Split", "Gather", "GatherElements", "ScatterElements", "ArgMax", "ArgMin")
MIXES = "it mixes tokens: it acts on {what}, and only attention may look across batch and seq"


def run(graph: ir.Graph, root: Path) -> int:
    """Rename in place; returns the number of values. Raises Unsupported that lists every refused node."""
    reasons: list[tuple[str, str]] = []
    tainted: set[ir.Node] = set()
    constant: set[ir.Node] = set()
    for node in graph:
        if any(value is not None and value.producer() in tainted for value in node.inputs):
            tainted.add(node)
            continue
        if all(_is_constant(value, constant) for value in node.inputs):
            constant.add(node)
            if match.is_op(node, node.op_type) and node.op_type != "DequantizeLinear":
                continue
        why = _why_not(node)
        if why:
            tainted.add(node)
            reasons.append((match.label(node), why))
    if reasons:
        name, why = reasons[0]
        more = f" ({len(reasons) - 1} more nodes refused)" if len(reasons) > 1 else ""
        raise Unsupported(
            WHERE,
            f"node `{name}` has no form in operator set {OPSET_VERSION}: {why}{more}",
            "datong compile --explain lists every node and reason",
            reasons,
        )
    count = 0
    for node in graph:
        for value in node.outputs:
            shape = match.dims(value)
            if shape is not None:
                value.meta["dims"] = (TOKENS, *shape[2:])
                count += 1
    return count


def _is_constant(value: ir.Value | None, nodes: set[ir.Node]) -> bool:
    """Absent, a weight, an initializer, or made by one of `nodes`."""
    if value is None or value.is_graph_input():
        return value is None
    made = value.producer()
    return made is None or made in nodes


def _why_not(node: ir.Node) -> str:
    """The reason against this node, empty when there is none."""
    if node.domain == match.DOMAIN and node.op_type in OPS:
        for value in node.outputs:
            if match.token_width(value) is None:
                return f"its output `{value.name}` should be [batch, seq, n], it is {match.dims(value)}"
        return ""
    if not match.is_op(node, node.op_type):
        if "why" in node.meta:
            return str(node.meta["why"])
        return f"operator `{node.domain}::{node.op_type}` is unknown"
    why = node.meta.get("why")
    mixed = _mixes(node)
    if mixed:
        return MIXES.format(what=mixed)
    return str(why) if why else f"`{node.op_type}` is not in the operator set, or not in a form that it has"


def _mixes(node: ir.Node) -> str:
    """Which of the two leading dims a stock node acts on, as far as its attributes tell."""
    shape = match.dims(node.inputs[0]) if node.inputs else None
    if shape is None or shape[:2] != (match.BATCH, match.SEQ):
        return ""
    op, rank = node.op_type, len(shape)
    axes: list[int] = []
    if op in AXIS_OPS:
        axes = [match.int_attr(node, "axis", AXIS_DEFAULT.get(op, 0))]
        if op in ("LayerNormalization", "RMSNormalization"):  # these norm from the axis to the last one
            axes = list(range(axes[0] % rank, rank))
    elif op.startswith("Reduce"):
        given = match.ints(match.operand(node, 1))
        found = node.attributes.get("axes")
        axes = given if given is not None else list(found.as_ints()) if found is not None else list(range(rank))
    elif op in ("CumSum", "Slice"):
        axes = match.ints(match.operand(node, 1 if op == "CumSum" else 3)) or []
    elif op == "Transpose":
        perm = node.attributes.get("perm")
        order = list(perm.as_ints()) if perm is not None else list(range(rank))[::-1]
        axes = [i for i, p in enumerate(order) if i != p]
    elif op == "Reshape":
        after = match.dims(node.outputs[0])
        axes = [] if after is not None and after[:2] == shape[:2] else [0, 1]
    hit = sorted({a % rank for a in axes} & {0, 1})
    return " and ".join(f"axis {a} ({shape[a]})" for a in hit)
