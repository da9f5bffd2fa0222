"""A cut along the last axis, of the whole width or inside equal groups, is `slice`.

Requires: infer_shapes.
Rules:
  1. Slice of `[batch, seq, n]` along the last axis with step 1  ->  slice, group n;
  2. Reshape to `[batch, seq, n/group, group]`, Slice along the last axis, Reshape to `[batch, seq, n/group x length]`
     ->  slice with that group; the first Reshape may have many readers, the Slice has one.
Ensures: every Slice left has a note.
"""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from datong.compiler import match
from datong.compiler.shapes import slice_bounds


def run(graph: ir.Graph, root: Path) -> int:
    """Rewrite in place; returns the number of slices."""
    count = 0
    for node in match.nodes(graph, "Slice"):
        found = _slice(node)
        if isinstance(found, str):
            match.note(node, found)
            continue
        x, last, attrs = found
        match.replace(last, "slice", [x], attrs, [last.outputs[0]], [node])
        count += 1
    return count


def _slice(node: ir.Node) -> tuple[ir.Value, ir.Node, dict[str, int | float | str]] | str:
    """(packed input, last node, attributes), or why it is not one."""
    source, out = node.inputs[0], node.outputs[0]
    shape = match.dims(source)
    cut = None if shape is None else slice_bounds(node, shape)
    if source is None or shape is None or cut is None:
        return "it should cut one axis of known size at constant places with step 1"
    axis, start, end = cut
    if axis != len(shape) - 1 or axis < 2:
        return f"it cuts axis {axis} of {len(shape)}: only the last axis of [batch, seq, ...] can be cut"
    group = shape[-1]
    if not isinstance(group, int):
        return "it cuts an axis of unknown size"
    attrs: dict[str, int | float | str] = {"group": group, "start": start, "length": end - start}
    if match.token_width(source) is not None:
        return source, node, attrs
    first = match.producer(source, "Reshape")
    packed = None if first is None else first.inputs[0]
    last = match.users(out)[0] if match.used_once(out) else None
    width = match.token_width(packed)
    if packed is None or width is None or last is None or not match.is_op(last, "Reshape"):
        return "a cut inside groups should stand between a Reshape to [batch, seq, groups, size] and one back"
    if len(shape) != 4 or match.token_width(last.outputs[0]) != width // group * (end - start):
        return "the Reshape after it should join the groups again"
    return packed, last, attrs
