"""A call of DequantizeTiles becomes one weight of a tile format.

Requires: bind_weights (which checked that every piece lies in its file).
Rules:
  1. each input is an initializer in a file; its format is the row of spec/formats.py with these dtypes and this tile;
  2. every piece must have the shape that the format gives it; a call of another kind is noted and left alone.
Ensures: no DequantizeTiles of a known format is left; nothing was read.
"""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from datong.compiler import match
from datong.compiler.passes.bind_weights import piece
from datong.importer.body import DOMAIN
from datong.importer.functions_tiles import TILES_INPUTS
from datong.spec import formats
from datong.spec.formats import Format
from datong.spec.program import Piece, Value


def run(graph: ir.Graph, root: Path) -> int:
    """Bind in place; returns the number of weights."""
    count = 0
    for node in graph:
        if node.domain != DOMAIN or node.op_type != "DequantizeTiles":
            continue
        weight = _weight(node)
        if isinstance(weight, str):
            match.note(node, weight)
        else:
            node.outputs[0].replace_all_uses_with(match.leaf(weight, weight.shape))
            match.erase(node)
            count += 1
    return count


def _weight(node: ir.Node) -> Value | str:
    found: dict[str, Piece] = {}
    for role, value in zip(TILES_INPUTS, node.inputs, strict=False):
        place = None if value is None else piece(value, role)
        if value is not None and place is None:
            return f"the {role} of `{match.label(node)}` should be an initializer in a file"
        if place is not None:
            found[role] = place
    tile = match.int_attr(node, "rows", 0), match.int_attr(node, "columns", 0)
    fmt, codes = _format(node, tile, found), found["codes"]
    if fmt is None:
        kinds = ", ".join(f"{p.role} {p.dtype}" for p in found.values())
        return f"no row of spec/formats.py has tiles of {tile[0]} x {tile[1]} with {kinds}"
    if len(codes.shape) not in (2, 3):
        return f"the codes should be [out, in] or [E, out, in], they are {list(codes.shape)}"
    for role in fmt.pieces:
        wanted = fmt.piece_shape(role, *codes.shape)
        if found[role].shape != wanted:
            have = list(found[role].shape)
            return f"the {role} of {list(codes.shape)} {fmt.name} should be {list(wanted)}, it is {have}"
    name = node.inputs[0].name if node.inputs[0] is not None else None
    return Value(name or "", "weight", "f32", codes.shape, fmt.name, tuple(found[role] for role in fmt.pieces))


def _format(node: ir.Node, tile: tuple[int, int], found: dict[str, Piece]) -> Format | None:
    table = node.attributes["table"].value if "table" in node.attributes else "none"
    divide = match.int_attr(node, "divide", 0) > 0
    for fmt in (*formats.ALL, *formats.GROUPED):
        if (
            fmt.tile
            and (fmt.tile, fmt.block) == tile
            and ((fmt.table or "none"), fmt.factor < 0) == (table, divide)
            and set(fmt.pieces) == set(found)
            and all(fmt.piece_dtype(role).name == found[role].dtype for role in fmt.pieces)
        ):
            return fmt
    return None
