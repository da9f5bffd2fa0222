"""Channels joined group by group are `concat`.

Requires: infer_shapes.
Rules:
  1. Reshape(Concat(Reshape(a, [0, 0, G, m]), Reshape(b, [0, 0, G, k]), axis -1), [0, 0, n]), a and b
     `[batch, seq, n]`  ->  concat(a, b), groups G;
  2. Concat(a, b, axis -1), a and b `[batch, seq, n]`  ->  concat, one group.
Ensures: every Concat of activations left has a note.
"""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from datong.compiler import match


def run(graph: ir.Graph, root: Path) -> int:
    """Rewrite in place; returns the number of joins."""
    count = 0
    for node in match.nodes(graph, "Concat"):
        shape = match.dims(node.outputs[0])
        if shape is None or match.int_attr(node, "axis", 0) not in (-1, len(shape) - 1) or len(node.inputs) != 2:
            match.note(node, "it should join two activations along their channels")
            continue
        if len(shape) == 3 and all(match.token_width(value) is not None for value in node.inputs):
            match.replace(node, "concat", list(node.inputs), {"groups": 1}, [node.outputs[0]])
            count += 1
            continue
        packed = [_packed(value, shape) for value in node.inputs]
        last = match.users(node.outputs[0])[0] if match.used_once(node.outputs[0]) else None
        if len(shape) == 4 and all(packed) and match.is_op(last, "Reshape") and last is not None:
            width = match.token_width(last.outputs[0])
            if isinstance(shape[2], int) and isinstance(shape[3], int) and width == shape[2] * shape[3]:
                match.replace(last, "concat", packed, {"groups": shape[2]}, [last.outputs[0]], [node])
                count += 1
                continue
        match.note(node, "it should join groups of channels, between Reshapes to [batch, seq, groups, n] and one back")
    return count


def _packed(value: ir.Value | None, shape: match.Dims) -> ir.Value | None:
    """The `[batch, seq, n]` behind a grid of the groups of `shape`."""
    reshape, grid = match.producer(value, "Reshape"), match.dims(value)
    if reshape is None or grid is None or grid[:3] != shape[:3] or match.token_width(reshape.inputs[0]) is None:
        return None
    return reshape.inputs[0]
