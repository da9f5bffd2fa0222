"""Rules of recognise_functions for the operators that keep a state per sequence.

The state leaves the graph as the caches of attention do: the operator's `layer` is the number in its name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from datong.compiler import match
from datong.compiler.passes.check_interface import STATE_NAME
from datong.compiler.passes.recognise_attention import drop
from datong.spec.program import Value


def _causal_conv(graph: ir.Graph, node: ir.Node) -> str:
    channels, taps = match.token_width(node.inputs[0]), _matrix(node.inputs[1])
    if channels is None or taps is None or taps.shape[0] != channels or channels != match.int_attr(node, "channels", 0):
        return "its input should be [batch, seq, channels], its weight [channels, taps] in a file, or reshaped to that"
    layer = _take(graph, node, "conv", (1, channels, int(taps.shape[1]) - 1), node.inputs[2:3])
    if isinstance(layer, str):
        return layer
    inputs = [node.inputs[0], match.leaf(taps, taps.shape), match.operand(node, 2)]
    attributes: dict[str, int | float | str] = {"layer": layer, "kind": node.attributes["kind"].as_string()}
    match.replace(node, "causal_conv", inputs if inputs[2] else inputs[:2], attributes, [node.outputs[0]])
    return ""


def _gated_delta(graph: ir.Graph, node: ir.Node) -> str:
    k_heads, v_heads = (match.int_attr(node, f"num_{part}_heads", 0) for part in "kv")
    return _recurrent(graph, node, "gated_delta", (k_heads, v_heads), {"num_k_heads": k_heads, "num_v_heads": v_heads})


def _linear_attention(graph: ir.Graph, node: ir.Node) -> str:
    heads = match.int_attr(node, "num_heads", 0)
    return _recurrent(graph, node, "linear_attention", (heads, heads), {"num_heads": heads})


def _recurrent(
    graph: ir.Graph, node: ir.Node, op: str, heads: tuple[int, int], counts: dict[str, int | float | str]
) -> str:
    """A call whose inputs are activations, then vectors of parameters, then the state."""
    activations = 5 if op == "gated_delta" else 3
    widths = [match.token_width(value) for value in node.inputs[:activations]]
    k, v = widths[1], widths[2]
    if None in widths or k is None or v is None or widths[0] != k or min(heads) < 1 or k % heads[0] or v % heads[1]:
        return "q, k and v should be packed, [batch, seq, heads x dim]"
    shape = (heads[1], k // heads[0], v // heads[1])
    layer = _take(graph, node, "recurrent", shape, node.inputs[activations:-1])
    if isinstance(layer, str):
        return layer
    attributes = {"layer": layer, **counts, "scale": match.float_attr(node, "scale", 1.0)}
    attributes |= {"eps": match.float_attr(node, "eps", 0.0)} if op == "gated_delta" else {}
    match.replace(node, op, list(node.inputs[:-1]), attributes, [node.outputs[0]])
    return ""


def _matrix(value: ir.Value | None) -> Value | None:
    """A plain weight [channels, taps], perhaps stored as [channels, 1, taps] and reshaped."""
    bound, reshape = match.bound(value), match.producer(value, "Reshape")
    if reshape is None:
        return bound if bound is not None and len(bound.shape) == 2 else None
    bound, shape = match.bound(reshape.inputs[0]), match.ints(match.operand(reshape, 1))
    if bound is None or shape is None or len(shape) != 2 or len(bound.pieces) != 1:
        return None
    if bound.shape != (shape[0], 1, shape[1]):
        return None
    return replace(bound, shape=tuple(shape), pieces=(replace(bound.pieces[0], shape=tuple(shape)),))


def _take(
    graph: ir.Graph, node: ir.Node, kind: str, shape: tuple[int, int, int], parameters: Sequence[ir.Value | None]
) -> int | str:
    """Take the state out of the graph: its layer; or why it is not the state of one, then nothing was changed."""
    for value in parameters:
        array = match.constant(value)
        if value is not None and match.bound(value) is None and (array is None or array.dtype != np.float32):
            return f"its parameter `{value.name}` should be a plain weight, or an inline vector"
    past, present = node.inputs[-1], node.outputs[1] if len(node.outputs) > 1 else None
    if past is None or present is None:
        return "it should read past_state and write present_state: without a state it sees no past"
    names = [STATE_NAME.match(value.name or "") for value in (past, present)]
    pairs = {(found[2], found[3]) for found in names if found}
    if None in names or len(pairs) != 1 or next(iter(pairs))[1] != kind or not past.is_graph_input():
        return f"its state goes from `{past.name}` to `{present.name}`, not from past_state to present_state of a layer"
    if len(past.uses()) != 1 or present.uses() or not present.is_graph_output():
        return f"its state `{past.name}` or `{present.name}` has other readers"
    if (match.dims(past) or ())[1:] != shape:
        return f"its state `{past.name}` should be [batch, {', '.join(map(str, shape))}], it is {match.dims(past)}"
    for value in (past, present):
        drop(graph, value)
    return int(next(iter(pairs))[0])


RULES: dict[str, Callable[[ir.Graph, ir.Node], str]] = {
    "CausalConv": _causal_conv,
    "GatedDelta": _gated_delta,
    "LinearAttention": _linear_attention,
}
