"""Find the shape of every value, with `batch` and `seq` kept apart from all other dims.

Requires: check_interface, bind_weights.
Rules:
  1. constants and weights have the shape of their tensor;
  2. a node's outputs follow compiler/shapes.py; what no rule can tell stays unknown.
Ensures: `dims` of every value that the recognisers look at, where it can be known. Shapes written in the file are not
believed: they may be wrong, and they name dims as they like.
"""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from datong.compiler import match, shapes


def run(graph: ir.Graph, root: Path) -> int:
    """Set `dims` in place; returns the number of values that got one."""
    count = 0
    for value in graph.initializers.values():
        if value.const_value is not None:
            value.meta["dims"] = tuple(d if isinstance(d, int) else -1 for d in value.const_value.shape)
    for node in graph:
        if match.is_op(node, "Constant"):
            array = match.constant(node.outputs[0])
            found: shapes.Shapes = [None if array is None else array.shape]
        else:
            found = shapes.infer(node)
        for out, shape in zip(node.outputs, found, strict=False):
            if shape is not None:
                out.meta["dims"] = shape
                count += 1
    return count
