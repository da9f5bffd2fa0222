"""Add, Mul and Sigmoid of whole token rows are the operators of the same name; products with less, `scale`s.

Requires: infer_shapes, recognise_linear (biases), recognise_glu.
Rules:
  1. Add(a, b), Mul(a, b), a and b both `[batch, seq, n]` activations  ->  add, mul;
  2. Sigmoid(x), x `[batch, seq, n]`  ->  sigmoid;
  3. Mul(x, c), c one inline number  ->  scale;
  4. Mul(x, s), s `[batch, seq, 1]`  ->  scale_groups;
  5. Reshape(Mul(Reshape(x, [0, 0, g, n/g]), Unsqueeze(s, -1)), [0, 0, n]), s `[batch, seq, g]`  ->  scale_groups.
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
        if match.is_op(node, "Mul") and (_scale(node) or _scale_groups(node)):
            count += 1
            continue
        if width is None or any(match.token_width(value) != width for value in node.inputs):
            shapes = [match.dims(value) for value in node.inputs]
            match.note(node, f"its inputs should be activations [batch, seq, n] of one width, they are {shapes}")
            continue
        match.replace(node, node.op_type.lower(), list(node.inputs), {}, [node.outputs[0]])
        count += 1
    return count


def _scale(node: ir.Node) -> bool:
    """Rule 3."""
    for x, factor in (node.inputs, reversed(node.inputs)):
        number = match.scalar(factor)
        if number is not None and match.token_width(x) is not None:
            match.replace(node, "scale", [x], {"factor": number}, [node.outputs[0]])
            return True
    return False


def _scale_groups(node: ir.Node) -> bool:
    """Rules 4 and 5."""
    width = match.token_width(node.outputs[0])
    for x, s in (tuple(node.inputs), tuple(node.inputs)[::-1]):
        if width is not None and width > 1 and match.token_width(x) == width and match.token_width(s) == 1:
            match.replace(node, "scale_groups", [x, s], {}, [node.outputs[0]])
            return True
        grid, column = match.producer(x, "Reshape"), match.producer(s, "Unsqueeze")
        shape = match.dims(node.outputs[0])
        if grid is None or column is None or shape is None or len(shape) != 4 or not match.used_once(node.outputs[0]):
            continue
        packed, gates, last = grid.inputs[0], column.inputs[0], match.users(node.outputs[0])[0]
        whole = match.token_width(packed)
        fits = match.dims(x) == shape and match.dims(s) == (*shape[:3], 1) and match.token_width(gates) == shape[2]
        if fits and whole is not None and match.is_op(last, "Reshape") and match.token_width(last.outputs[0]) == whole:
            match.replace(last, "scale_groups", [packed, gates], {}, [last.outputs[0]], [node])
            return True
    return False
