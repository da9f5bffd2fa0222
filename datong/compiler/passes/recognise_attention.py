"""Attention over its past is `attention` over a paged cache.

Requires: check_interface, infer_shapes.
Rules:
  1. Attention(q, k, v packed `[batch, seq, heads x dim]`, no mask, past_key_values.N.key, past_key_values.N.value),
     is_causal = 1, presents go to present.N.key and present.N.value and nowhere else  ->  attention, layer N;
  2. scale is 1/sqrt(dim) where absent; window = left_window_size + 1, 0 where that is -1;
  3. no right window, no score output, no nonpad_kv_seqlen, softmax in f32.
Ensures: caches are no inputs or outputs of the graph any more; every Attention left has a note.
"""

from __future__ import annotations

import math
from pathlib import Path

import onnx_ir as ir

from datong.compiler import match
from datong.compiler.passes.check_interface import PAST_NAME, PRESENT_NAME


def run(graph: ir.Graph, root: Path) -> int:
    """Rewrite in place; returns the number of attentions."""
    count = 0
    for node in match.nodes(graph, "Attention"):
        found = _attrs(node)
        if isinstance(found, str):
            match.note(node, found)
            continue
        _drop_caches(graph, node, (4, 5))
        match.replace(node, "attention", list(node.inputs[:3]), found, [node.outputs[0]])
        count += 1
    return count


def take_caches(
    graph: ir.Graph, node: ir.Node, places: tuple[int, int], dims: tuple[int, int], kv_heads: int
) -> int | str:
    """Take the caches of an attention out of the graph.

    Args:
        graph: that has them as inputs and outputs.
        node: whose outputs 1 and 2 are the presents.
        places: of the pasts, key and value, among its inputs.
        dims: of a key and a value head.
        kv_heads: in a cache.

    Returns:
        The layer, or why they are not the caches of one layer; then nothing was changed.
    """
    layer = _layer(node, places, dims, kv_heads)
    if isinstance(layer, int):
        _drop_caches(graph, node, places)
    return layer


def _drop_caches(graph: ir.Graph, node: ir.Node, places: tuple[int, int]) -> None:
    for value in (*(node.inputs[i] for i in places), *node.outputs[1:3]):
        if value is not None:
            drop(graph, value)


def drop(graph: ir.Graph, cache: ir.Value) -> None:
    """Make `cache` no input or output of the graph any more."""
    for values in (graph.inputs, graph.outputs):
        for i, value in enumerate(values):
            if value is cache:
                values.pop(i)  # `del` would leave the value marked as input or output
                break


def _attrs(node: ir.Node) -> dict[str, int | float | str] | str:
    """Attributes of the operator, or why it is not one."""
    q, k, v = (match.token_width(value) for value in node.inputs[:3])
    heads, kv_heads = match.int_attr(node, "q_num_heads", 0), match.int_attr(node, "kv_num_heads", 0)
    if q is None or k is None or v is None or heads <= 0 or kv_heads <= 0:
        return "q, k and v should be packed, [batch, seq, heads x dim], with q_num_heads and kv_num_heads"
    if heads % kv_heads or q % heads or k % kv_heads or v % kv_heads or q // heads != k // kv_heads:
        return f"heads do not divide evenly: q {q} in {heads}, k {k} and v {v} in {kv_heads}"
    if match.int_attr(node, "is_causal", 0) != 1 or match.operand(node, 3) is not None:
        return "it should be causal, without a mask"
    if match.operand(node, 6) is not None or match.int_attr(node, "right_window_size", -1) > 0:
        return "nonpad_kv_seqlen and right windows have no form in the operator set"
    if len(node.outputs) > 3 and (node.outputs[3].uses() or node.outputs[3].is_graph_output()):
        return "its scores are read; a paged attention does not give them"
    layer = _layer(node, (4, 5), (k // kv_heads, v // kv_heads), kv_heads)
    if isinstance(layer, str):
        return layer
    return {
        "layer": layer,
        "num_heads": heads,
        "num_kv_heads": kv_heads,
        "scale": match.float_attr(node, "scale", 1.0 / math.sqrt(q // heads)),
        "window": match.int_attr(node, "left_window_size", -1) + 1,
        "softcap": match.float_attr(node, "softcap", 0.0),
    }


def _layer(node: ir.Node, places: tuple[int, int], sizes: tuple[int, int], kv_heads: int) -> int | str:
    """The N of its four cache names, or why they are not the caches of one layer."""
    layers: set[str] = set()
    for out, (i, kind, dim) in enumerate(zip(places, ("key", "value"), sizes, strict=True), start=1):
        past = match.operand(node, i)
        present = node.outputs[out] if len(node.outputs) > out else None
        if past is None or present is None:
            return "it should read past_key_values and write present: without a cache it sees no past"
        before, after = PAST_NAME.match(past.name or ""), PRESENT_NAME.match(present.name or "")
        if not before or not after or before[2] != kind or after[2] != kind or not past.is_graph_input():
            return f"its {kind} cache goes from `{past.name}` to `{present.name}`, not from past to present of a layer"
        if len(past.uses()) != 1 or present.uses() or not present.is_graph_output():
            return f"its cache `{past.name}` or `{present.name}` has other readers"
        if (match.dims(past) or ())[1::2] != (kv_heads, dim):
            return f"its cache `{past.name}` should have {kv_heads} heads of {dim}, it has {match.dims(past)}"
        layers |= {before[1], after[1]}
    return int(layers.pop()) if len(layers) == 1 else f"its caches belong to different layers: {sorted(layers)}"
