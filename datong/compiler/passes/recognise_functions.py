"""Calls of the functions that ONNX lacks are operators: `glu`, `moe`, `attention`, and those with a state.

Requires: inline_functions (what is left are functions of ours), bind_weights, bind_block_weights, infer_shapes.
Rules:
  1. GLU(gate, up)  ->  glu;
  2. MoE(x, logits, gate, up, down, …), each stack of experts in a form of `_stack`  ->  moe;
  3. Attention(q, k, v, past_key, past_value, sinks, slopes), caches as recognise_attention wants them  ->  attention.
  4. CausalConv, GatedDelta, LinearAttention, their last input `past_state.N.…` and their second output
     `present_state.N.…` and nobody else's, their parameters weights or inline vectors  ->  causal_conv, gated_delta,
     linear_attention, layer N.
  5. SelectKeys, SparseAttention  ->  select_keys, sparse_attention (recognise_sparse.py);
  6. LatentAttention  ->  latent_attention (recognise_latent.py).
A stack [E, out, in] is: a plain initializer in a file (or its Cast); that, Transposed by [0, 2, 1] (swapped); or
Reshape(Concat(E bound matrices [out, in], axis 0), [E, out, in]).
Ensures: every such call left has a note.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir

from datong.compiler import match
from datong.compiler.passes import recognise_latent, recognise_sparse, recognise_state
from datong.compiler.passes.recognise_attention import take_caches
from datong.importer.body import DOMAIN
from datong.importer.functions import KNOWN
from datong.spec.program import Value

STACKS = ("gate", "up", "down")


def run(graph: ir.Graph, root: Path) -> int:
    """Rewrite in place; returns the number of calls."""
    count = 0
    for node in graph:
        if node.domain == DOMAIN and node.op_type in KNOWN:
            why = RULES[node.op_type](graph, node)
            if why:
                match.note(node, why)
            else:
                count += 1
    return count


def _attributes(node: ir.Node) -> dict[str, int | float | str]:
    known = KNOWN[node.op_type]
    return {name: kind(node.attributes[name].value) for name, kind in known.attributes.items()}


def _operands(node: ir.Node) -> dict[str, ir.Value | None]:
    return {name: match.operand(node, i) for i, name in enumerate(KNOWN[node.op_type].inputs)}


def _glu(graph: ir.Graph, node: ir.Node) -> str:
    match.replace(node, "glu", list(node.inputs), _attributes(node), [node.outputs[0]])
    return ""


def _moe(graph: ir.Graph, node: ir.Node) -> str:
    operands = _operands(node)
    for name in STACKS:
        value = operands[name]
        if value is not None:
            stack = _stack(value)
            if isinstance(stack, str):
                return f"its `{name}` {stack}"
            operands[name] = match.leaf(stack, stack.shape)
    for name in ("select_bias", "gate_bias", "up_bias", "down_bias"):
        value = operands[name]
        if value is not None and match.bound(value) is None:
            return f"its `{name}` should be a plain weight"
    inputs = list(operands.values())
    while inputs[-1] is None:
        inputs.pop()
    match.replace(node, "moe", inputs, _attributes(node), [node.outputs[0]])
    return ""


def _stack(value: ir.Value) -> Value | str:
    """The experts behind a value, or what is wrong with it."""
    transpose = match.producer(value, "Transpose")
    if transpose is not None and list(transpose.attributes["perm"].as_ints()) == [0, 2, 1]:
        bound = match.bound(transpose.inputs[0])
        if bound is None or len(bound.shape) != 3:
            return "should be a transposed plain weight [E, in, out] in a file"
        experts, width, out = bound.shape
        return replace(bound, shape=(experts, out, width), swapped=True)
    bound = match.bound(value)
    if bound is not None:
        return bound if len(bound.shape) == 3 else f"should be [E, out, in], is {list(bound.shape)}"
    reshape = match.producer(value, "Reshape")
    concat = None if reshape is None else match.producer(reshape.inputs[0], "Concat")
    if reshape is None or concat is None or match.int_attr(concat, "axis", -1) != 0:
        return "should be one weight [E, out, in] in a file, or the weights of the experts, concatenated and reshaped"
    members = [match.bound(one) for one in concat.inputs]
    shape = match.ints(reshape.inputs[1])
    found = [one for one in members if one is not None]
    if len(found) != len(members) or shape is None or len(shape) != 3 or shape[0] != len(found):
        return "should be as many weights in files as there are experts"
    if any(one.shape != tuple(shape[1:]) or one.format != found[0].format for one in found):
        return f"should have experts {shape[1:]} of one format"
    pieces = tuple(piece for one in found for piece in one.pieces)
    return Value(found[0].name, "weight", "f32", tuple(shape), found[0].format, pieces)


def _attention(graph: ir.Graph, node: ir.Node) -> str:
    operands, attributes = _operands(node), _attributes(node)
    q, k, v = (match.token_width(operands[name]) for name in "qkv")
    heads, kv_heads = int(attributes["num_heads"]), int(attributes["num_kv_heads"])
    if q is None or k is None or v is None or heads % kv_heads or q % heads or k % kv_heads or v % kv_heads:
        return "q, k and v should be packed, [batch, seq, heads x dim]"
    layer = take_caches(graph, node, (3, 4), (k // kv_heads, v // kv_heads), kv_heads)
    if isinstance(layer, str):
        return layer
    inputs = [operands[name] for name in ("q", "k", "v", "sinks", "slopes")]
    while inputs[-1] is None:
        inputs.pop()
    match.replace(node, "attention", inputs, {"layer": layer, **attributes}, [node.outputs[0]])
    return ""


def _with_attributes(rule: recognise_sparse.Rule) -> Callable[[ir.Graph, ir.Node], str]:
    return lambda graph, node: rule(graph, node, _attributes(node))


RULES: dict[str, Callable[[ir.Graph, ir.Node], str]] = {
    "GLU": _glu,
    "MoE": _moe,
    "Attention": _attention,
    **recognise_state.RULES,
    **{name: _with_attributes(rule) for name, rule in (recognise_sparse.RULES | recognise_latent.RULES).items()},
}
