"""A product of g, sigmoid(g) and u is `glu`.

Requires: infer_shapes.
Rules:
  1. silu(g) is Mul(g, Sigmoid(g)) or Swish(g) with alpha 1;
  2. Mul(silu(g), u), or the three factors multiplied in any order and grouping, all `[batch, seq, n]`, the inner
     product and the sigmoid read once  ->  glu(g, u), kind silu.
Ensures: nothing; what is left are products and sigmoids of their own.
"""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from datong.compiler import match


def run(graph: ir.Graph, root: Path) -> int:
    """Rewrite in place; returns the number of glus."""
    count = 0
    for node in match.nodes(graph, "Mul"):
        found = _glu(node)
        if found is not None:
            gate, up, sources = found
            match.replace(node, "glu", [gate, up], {"kind": "silu"}, [node.outputs[0]], sources)
            count += 1
    return count


def _glu(node: ir.Node) -> tuple[ir.Value, ir.Value, list[ir.Node]] | None:
    """(gate, up, inner nodes) of a product, or None."""
    width = match.token_width(node.outputs[0])
    a, b = node.inputs
    if width is None or match.token_width(a) != width or match.token_width(b) != width or a is None or b is None:
        return None
    for inner, other in ((a, b), (b, a)):
        swish = match.producer(inner, "Swish")
        if swish is not None and match.used_once(inner) and match.float_attr(swish, "alpha", 1.0) == 1.0:
            gate = swish.inputs[0]
            if gate is not None:
                return gate, other, [swish]
        product = match.producer(inner, "Mul")
        if product is None or not match.used_once(inner):
            continue
        left, right = product.inputs
        for x, y, z in ((left, right, other), (right, left, other), (left, other, right), (right, other, left),
                        (other, left, right), (other, right, left)):  # fmt: skip
            sigmoid = match.producer(y, "Sigmoid")
            if sigmoid is None or y is None or sigmoid.inputs[0] is not x or x is None or z is None:
                continue
            if match.used_once(y) and all(match.token_width(v) == width for v in (x, z)):
                return x, z, [product, sigmoid]
    return None
