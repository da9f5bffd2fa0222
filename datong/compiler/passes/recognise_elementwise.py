"""Add, Mul and Sigmoid of whole token rows are the operators of the same name.

Requires: infer_shapes, recognise_linear (biases), recognise_glu.
Rules:
  1. Add(a, b), Mul(a, b), a and b both `[batch, seq, n]` activations  ->  add, mul;
  2. Sigmoid(x), x `[batch, seq, n]`  ->  sigmoid.
Ensures: every Add, Mul and Sigmoid left has a note.
"""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from datong.compiler import match


def run(graph: ir.Graph, root: Path) -> int:
    """Rewrite in place; returns the number of nodes."""
    count = 0
    for node in match.nodes(graph, "Add", "Mul", "Sigmoid"):
        width = match.token_width(node.outputs[0])
        if width is None or any(match.token_width(value) != width for value in node.inputs):
            shapes = [match.dims(value) for value in node.inputs]
            match.note(node, f"its inputs should be activations [batch, seq, n] of one width, they are {shapes}")
            continue
        match.replace(node, node.op_type.lower(), list(node.inputs), {}, [node.outputs[0]])
        count += 1
    return count
