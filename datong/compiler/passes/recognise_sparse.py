"""Rules of recognise_functions for attention over chosen keys. The caches leave the graph as those of attention do."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx_ir as ir

from datong.compiler import match
from datong.compiler.passes.check_interface import PAST_NAME, PRESENT_NAME
from datong.compiler.passes.recognise_attention import drop, take_caches

Attributes = Mapping[str, int | float | str]


def select_keys(graph: ir.Graph, node: ir.Node, attributes: Attributes) -> str:
    """SelectKeys(q, k, weights, past_key_values.N.index)  ->  select_keys, layer N."""
    q, k = (match.token_width(value) for value in node.inputs[:2])
    heads = int(attributes["num_heads"])
    if q is None or k is None or heads < 1 or q != heads * k:
        return "q and k should be packed, [batch, seq, heads x dim] and [batch, seq, dim]"
    past, present = match.operand(node, 3), node.outputs[1] if len(node.outputs) > 1 else None
    if past is None or present is None:
        return "it should read past_key_values.N.index and write present.N.index: without a cache it sees no past"
    before, after = PAST_NAME.match(past.name or ""), PRESENT_NAME.match(present.name or "")
    if not before or not after or before[1] != after[1] or {before[2], after[2]} != {"index"}:
        return f"its cache goes from `{past.name}` to `{present.name}`, not from past to present of a layer's index"
    if len(past.uses()) != 1 or present.uses() or not past.is_graph_input() or not present.is_graph_output():
        return f"its cache `{past.name}` or `{present.name}` has other readers"
    if (match.dims(past) or ())[1::2] != (1, k):
        return f"its cache `{past.name}` should have 1 head of {k}, it has {match.dims(past)}"
    for value in (past, present):
        drop(graph, value)
    weights = match.operand(node, 2)
    inputs = [*node.inputs[:2], *([] if weights is None else [weights])]
    match.replace(node, "select_keys", inputs, {"layer": int(before[1]), **attributes}, [node.outputs[0]])
    return ""


def sparse_attention(graph: ir.Graph, node: ir.Node, attributes: Attributes) -> str:
    """SparseAttention(q, k, v, chosen, past_key, past_value)  ->  sparse_attention, layer N."""
    q, k, v, chosen = (match.token_width(value) for value in node.inputs[:4])
    heads, kv_heads, groups = (int(attributes[name]) for name in ("num_heads", "num_kv_heads", "groups"))
    if q is None or k is None or v is None or heads % kv_heads or q % heads or k % kv_heads or v % kv_heads:
        return "q, k and v should be packed, [batch, seq, heads x dim]"
    if chosen is None or chosen % groups or kv_heads % groups:
        return f"what is chosen should be [batch, seq, groups x number], with {groups} groups that divide the key heads"
    layer = take_caches(graph, node, (4, 5), (k // kv_heads, v // kv_heads), kv_heads)
    if isinstance(layer, str):
        return layer
    match.replace(node, "sparse_attention", list(node.inputs[:4]), {"layer": layer, **attributes}, [node.outputs[0]])
    return ""


Rule = Callable[[ir.Graph, ir.Node, Attributes], str]
RULES: dict[str, Rule] = {"SelectKeys": select_keys, "SparseAttention": sparse_attention}
