"""RMSNormalization over the last axis, of the whole width or of each head, is `rms_norm`.

Requires: bind_weights, infer_shapes.
Rules:
  1. RMSNormalization(x, w), axis the last one, w a plain weight or constant `[D]`, x `[batch, seq, D]`;
  2. Reshape to `[batch, seq, H, D]`, RMSNormalization, Reshape back  ->  the same operator: it norms groups of D;
  3. w = Add(w', 1) in any operand order  ->  offset 1.
Ensures: every RMSNormalization left has a note.
"""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from datong.compiler import match

EPSILON = 1e-5  # ONNX's default


def run(graph: ir.Graph, root: Path) -> int:
    """Rewrite in place; returns the number of norms."""
    count = 0
    for node in match.nodes(graph, "RMSNormalization"):
        x, out = node.inputs[0], node.outputs[0]
        shape = match.dims(x)
        weight, offset = _weight(match.operand(node, 1))
        sources: list[ir.Node] = []
        root_node = node
        if not shape or weight is None or match.dims(weight) != (shape[-1],):
            match.note(node, "its scale should be a plain weight as long as the last axis")
            continue
        if match.int_attr(node, "axis", -1) not in (-1, len(shape) - 1):
            match.note(node, "it should norm the last axis only")
            continue
        if len(shape) == 4:
            heads = _heads(node)
            if heads is None:
                match.note(
                    node, "a norm per head should stand between a Reshape to [batch, seq, heads, dim] and one back"
                )
                continue
            x, root_node = heads
            out, sources = root_node.outputs[0], [node]
        elif match.token_width(x) is None:
            match.note(node, "its input should be [batch, seq, n]")
            continue
        attrs = {"eps": match.float_attr(node, "epsilon", EPSILON), "offset": offset}
        match.replace(root_node, "rms_norm", [x, weight], attrs, [out], sources)
        count += 1
    return count


def _weight(value: ir.Value | None) -> tuple[ir.Value | None, float]:
    """The stored vector and what is added to it."""
    add = match.producer(value, "Add")
    if add is not None:
        for one, other in (add.inputs, reversed(add.inputs)):
            if match.scalar(one) == 1.0 and _is_vector(other):
                return other, 1.0
    return (value, 0.0) if _is_vector(value) else (None, 0.0)


def _is_vector(value: ir.Value | None) -> bool:
    return match.bound(value) is not None or match.constant(value) is not None


def _heads(node: ir.Node) -> tuple[ir.Value, ir.Node] | None:
    """The packed input before the first Reshape, and the Reshape back that alone reads the norm."""
    first = match.producer(node.inputs[0], "Reshape")
    if first is None or not match.used_once(node.outputs[0]):
        return None
    last = match.users(node.outputs[0])[0]
    packed = first.inputs[0]
    width = match.token_width(packed)
    if packed is None or width is None or not match.is_op(last, "Reshape"):
        return None
    same = match.token_width(last.outputs[0]) == width and (match.dims(node.inputs[0]) or ())[:2] == (
        match.BATCH,
        match.SEQ,
    )
    return (packed, last) if same else None
