"""Rule of recognise_functions for latent attention. Its cache, one row a token, leaves the graph."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from datong.compiler import match
from datong.compiler.passes.check_interface import PAST_NAME, PRESENT_NAME
from datong.compiler.passes.recognise_attention import drop


def latent_attention(graph: ir.Graph, node: ir.Node, attributes: Mapping[str, int | float | str]) -> str:
    """LatentAttention(q, latent, k_rope, weight, chosen, past_key_values.N.key)  ->  latent_attention, layer N."""
    q, latent, rope = (match.token_width(value) for value in node.inputs[:3])
    heads, plain = int(attributes["num_heads"]), int(attributes["plain"])
    if q is None or latent is None or rope is None or heads < 1 or q != heads * (plain + rope):
        return "q should be packed, [batch, seq, heads x (plain + rope)], beside latent and k_rope of one head"
    weight = match.bound(node.inputs[3])
    if weight is None or len(weight.shape) != 2 or weight.shape[0] % heads or weight.shape[1] != latent:
        return "its weight should be one matrix [heads x (plain + value), latent] in a file"
    past, present = match.operand(node, 5), node.outputs[1] if len(node.outputs) > 1 else None
    if past is None or present is None:
        return "it should read past_key_values.N.key and write present.N.key: without a cache it sees no past"
    before, after = PAST_NAME.match(past.name or ""), PRESENT_NAME.match(present.name or "")
    if not before or not after or before[1] != after[1] or {before[2], after[2]} != {"key"}:
        return f"its cache goes from `{past.name}` to `{present.name}`, not from past to present of a layer's key"
    if len(past.uses()) != 1 or present.uses() or not past.is_graph_input() or not present.is_graph_output():
        return f"its cache `{past.name}` or `{present.name}` has other readers"
    chosen = match.operand(node, 4)
    if chosen is not None and match.token_width(chosen) is None:
        return "what is chosen should be [batch, seq, number]"
    if (match.dims(past) or ())[1::2] != (1, latent + rope):
        return f"its cache `{past.name}` should have 1 head of {latent + rope}, it has {match.dims(past)}"
    for value in (past, present):
        drop(graph, value)
    inputs = [*node.inputs[:4], *([] if chosen is None else [chosen])]
    match.replace(node, "latent_attention", inputs, {"layer": int(before[1]), **attributes}, [node.outputs[0]])
    return ""


RULES = {"LatentAttention": latent_attention}
