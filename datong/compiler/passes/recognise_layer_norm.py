"""LayerNormalization over the last axis is `layer_norm`.

Requires: bind_weights, infer_shapes.
Rules:
  1. LayerNormalization(x, w, b), axis the last one, w and b (which may be absent) plain weights or constants `[n]`,
     x `[batch, seq, n]`; only its first output is read.
Ensures: every LayerNormalization left has a note.
"""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from datong.compiler import match

EPSILON = 1e-5  # ONNX's default


def run(graph: ir.Graph, root: Path) -> int:
    """Rewrite in place; returns the number of norms."""
    count = 0
    for node in match.nodes(graph, "LayerNormalization"):
        why = _why_not(node)
        if why:
            match.note(node, why)
            continue
        inputs = [value for value in node.inputs if value is not None]
        match.replace(
            node, "layer_norm", inputs, {"eps": match.float_attr(node, "epsilon", EPSILON)}, [node.outputs[0]]
        )
        count += 1
    return count


def _why_not(node: ir.Node) -> str:
    """The reason against this node, empty when there is none."""
    width, shape = match.token_width(node.inputs[0]), match.dims(node.inputs[0]) or ()
    if width is None:
        return "its input should be [batch, seq, n]"
    if match.int_attr(node, "axis", -1) not in (-1, len(shape) - 1):
        return "it should norm the last axis only"
    for value in node.inputs[1:3]:
        if value is not None and (match.bound(value) is None and match.constant(value) is None):
            return "its scale and bias should be plain weights"
        if value is not None and match.dims(value) != (width,):
            return "its scale and bias should be as long as the last axis"
    if any(value.uses() or value.is_graph_output() for value in node.outputs[1:]):
        return "its mean and deviation are read; the operator does not give them"
    return ""
