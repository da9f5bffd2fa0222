"""RotaryEmbedding on packed heads with a table of the positions is `rope`.

Requires: recognise_rope_table, infer_shapes.
Rules:
  1. RotaryEmbedding(x `[batch, seq, H*D]`, cos, sin), num_heads = H, no position_ids, cos and sin from a rope_table;
  2. the rotated part is as wide as the table says: rotary_embedding_dim is 2 x the table's width, or 0 and D is.
Ensures: every RotaryEmbedding left has a note.
"""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from datong.compiler import match


def run(graph: ir.Graph, root: Path) -> int:
    """Rewrite in place; returns the number of ropes."""
    count = 0
    for node in match.nodes(graph, "RotaryEmbedding"):
        why = _why_not(node)
        if why:
            match.note(node, why)
            continue
        attrs = {
            "num_heads": match.int_attr(node, "num_heads", 0),
            "interleaved": match.int_attr(node, "interleaved", 0),
        }
        match.replace(node, "rope", list(node.inputs[:3]), attrs, [node.outputs[0]])
        count += 1
    return count


def _why_not(node: ir.Node) -> str:
    if len(node.inputs) < 3 or match.operand(node, 3) is not None:
        return "its tables should be computed per token, without position_ids as an input"
    x, cos, sin = node.inputs[:3]
    makers = [None if value is None else value.producer() for value in (cos, sin)]
    if makers[0] is None or makers[0] is not makers[1] or makers[0].op_type != "rope_table":
        return str(node.meta.get("why") or "its cos and sin should come from one rope table")
    width, heads = match.token_width(x), match.int_attr(node, "num_heads", 0)
    if width is None or heads <= 0 or width % heads:
        return "its input should be [batch, seq, num_heads x head_dim]"
    half = (match.dims(cos) or (0,))[-1]
    rotated = match.int_attr(node, "rotary_embedding_dim", 0) or width // heads
    if not isinstance(half, int) or rotated != 2 * half or rotated > width // heads:
        return f"it rotates {rotated} of {width // heads} channels, the table is for {half} pairs"
    return ""
