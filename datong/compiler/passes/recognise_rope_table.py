"""Cosines and sines of the positions are one `rope_table`.

Requires: infer_shapes. Roots are the RotaryEmbedding nodes, which know what is cosine and what is sine.
Rules:
  1. angle = Mul(Unsqueeze(Cast(position_ids, f32), axis 2), inv_freq) in any operand order, inv_freq inline, D/2;
  2. cos = Cos(angle), sin = Sin(angle), or both Mul(that, s) with the same inline scalar s  ->  rope_table, scale s;
  3. the same angle and scale give the same table: layers share it.
Ensures: a RotaryEmbedding whose table is of another form has a note.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir

from datong.compiler import match


def run(graph: ir.Graph, root: Path) -> int:
    """Rewrite in place; returns the number of tables."""
    count = 0
    for node in match.nodes(graph, "RotaryEmbedding"):
        if len(node.inputs) < 3 or _is_table(node.inputs[1]):
            continue
        found = _table(node.inputs[1], node.inputs[2])
        if isinstance(found, str):
            match.note(node, found)
            continue
        angle, freqs, scale = found
        cos, sin = node.inputs[1], node.inputs[2]
        positions = next(value for value in graph.inputs if value.name == "position_ids")
        if cos is None or sin is None:
            continue
        sources = [value.producer() for value in (cos, sin)]
        named = [source for source in sources if source is not None]
        match.replace(angle, "rope_table", [positions, freqs], {"scale": scale}, [cos, sin], named)
        count += 1
    return count


def _is_table(value: ir.Value | None) -> bool:
    made = value.producer() if value is not None else None
    return made is not None and made.domain == match.DOMAIN


def _table(cos: ir.Value | None, sin: ir.Value | None) -> tuple[ir.Node, ir.Value, float] | str:
    """The Mul that makes the angle, the frequencies and the scale; or what is wrong."""
    (cos, cos_scale), (sin, sin_scale) = _unscale(cos), _unscale(sin)
    cosine, sine = match.producer(cos, "Cos"), match.producer(sin, "Sin")
    if cosine is None or sine is None:
        return "its tables should be Cos and Sin of the positions, computed in the graph"
    if cosine.inputs[0] is not sine.inputs[0] or cos_scale != sin_scale:
        return "its Cos and Sin should have the same angle and the same scale"
    angle = match.producer(cosine.inputs[0], "Mul")
    if angle is not None:
        for position, freqs in (angle.inputs, reversed(angle.inputs)):
            values = match.constant(freqs)
            if freqs is not None and values is not None and values.dtype == np.float32 and _is_position(position):
                flat = values.size == values.shape[-1] if values.ndim else False
                return (angle, freqs, cos_scale) if flat else "its inv_freq should be one row"
    return "its angle should be position_ids as f32 times an inline f32 inv_freq"


def _unscale(value: ir.Value | None) -> tuple[ir.Value | None, float]:
    mul = match.producer(value, "Mul")
    if mul is None:
        return value, 1.0
    for table, factor in (mul.inputs, reversed(mul.inputs)):
        number = match.scalar(factor)
        if number is not None:
            return table, number
    return value, 1.0


def _is_position(value: ir.Value | None) -> bool:
    """Unsqueeze(Cast(position_ids)) or Cast(Unsqueeze(position_ids)), to `[batch, seq, 1]` f32."""
    if match.dims(value) != (match.BATCH, match.SEQ, 1):
        return False
    seen = set()
    node = match.producer(value, "Cast", "Unsqueeze")
    while node is not None:
        if node.op_type == "Cast" and match.int_attr(node, "to", 0) != ir.DataType.FLOAT:
            return False
        seen.add(node.op_type)
        value = node.inputs[0]
        node = match.producer(value, "Cast", "Unsqueeze")
    is_input = value is not None and value.is_graph_input() and value.name == "position_ids"
    return is_input and seen == {"Cast", "Unsqueeze"}
