"""Gather of weight rows by token id is `embedding`.

Requires: bind_weights, bind_block_weights, infer_shapes.
Rules:
  1. Gather(W, input_ids, axis=0), W a bound weight `[vocab, n]`  ->  embedding(ids, W);
  2. Cast to f32 of Gather of a stored f16 or bf16 weight is the same.
Ensures: every Gather left has a note.
"""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from datong.compiler import match


def run(graph: ir.Graph, root: Path) -> int:
    """Rewrite in place; returns the number of embeddings."""
    count = 0
    for node in match.nodes(graph, "Gather"):
        table, ids = node.inputs[0], node.inputs[1]
        weight = match.bound(table) or match.stored(table)
        if weight is None or len(weight.shape) != 2:
            match.note(node, "an embedding reads rows of a weight [vocab, n]")
        elif ids is None or ids.name != "input_ids" or not ids.is_graph_input() or match.int_attr(node, "axis", 0) != 0:
            match.note(node, "an embedding gathers along axis 0 by the input `input_ids`")
        else:
            last = node if match.bound(table) is not None else _cast(node)
            if last is None:
                match.note(node, f"its rows are {weight.format}; an embedding casts them to f32")
                continue
            source = table if match.bound(table) is not None else match.leaf(weight, weight.shape)
            match.replace(last, "embedding", [ids, source], {}, [last.outputs[0]], [node])
            count += 1
    return count


def _cast(node: ir.Node) -> ir.Node | None:
    """The Cast to f32 that alone reads the rows."""
    if not match.used_once(node.outputs[0]):
        return None
    cast = match.users(node.outputs[0])[0]
    return cast if match.is_op(cast, "Cast") and match.int_attr(cast, "to", 0) == ir.DataType.FLOAT else None
