"""Remove nodes that change nothing.

Requires: infer_shapes.
Rules:
  1. Identity, and Dropout whose mask nobody reads;
  2. Reshape to the shape that its input has;
  3. Reshape back to the packed `[batch, seq, n]` that the Reshape before it took apart. Not the other way round: packed
     rows between operators are what the recognisers look for;
  4. Cast to f32 of what is f32 already.
Ensures: none of these is left, except where it makes a graph output from a graph input.
"""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from datong.compiler import match


def run(graph: ir.Graph, root: Path) -> int:
    """Rewrite in place; returns the number of nodes taken out."""
    count = 0
    for node in match.nodes(graph, "Identity", "Dropout", "Reshape", "Cast"):
        source = _same(node)
        if source is not None and _bypass(node, source):
            count += 1
    return count


def _same(node: ir.Node) -> ir.Value | None:
    """The earlier value that the node's output equals, or None."""
    source = match.operand(node, 0)
    if source is None or any(out.uses() for out in node.outputs[1:]):
        return None
    if node.op_type == "Cast":
        f32 = source.dtype == ir.DataType.FLOAT and match.int_attr(node, "to", 0) == ir.DataType.FLOAT
        return source if f32 else None
    if node.op_type != "Reshape":
        return source
    shape = match.dims(node.outputs[0])
    before = match.producer(source, "Reshape")
    if shape is not None and match.dims(source) == shape:
        return source
    packed = None if before is None else before.inputs[0]
    is_back = match.token_width(node.outputs[0]) is not None and match.dims(packed) == shape
    return packed if is_back else None


def _bypass(node: ir.Node, source: ir.Value) -> bool:
    out = node.outputs[0]
    if out.is_graph_output():
        if source.is_graph_output() or source.is_graph_input() or source.is_initializer():
            return False
        source.name, out.name = out.name, f"{out.name}#old"
    out.replace_all_uses_with(source, replace_graph_outputs=True)
    match.erase(node)
    return True
