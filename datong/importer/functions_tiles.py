"""The function of domain `datong` that unpacks tile formats (spec/formats.py), with a body of stock ONNX.

    DequantizeTiles(codes, scale, factor, zero) -> w                (codes - zero) * scale of the tile, f32

codes `[…, out, in]`, scale `[…, ceil(out / rows), ceil(in / columns)]`; `rows` and `columns` are those of a tile.
`table`: what codes stand for (TABLES of spec/formats.py), `none`: their own value. factor `[…, 1]`, may be absent:
scales are multiplied with it, or divided by it where `divide` is 1. zero: like scale, may be absent. `rows` and
`columns` of WHOLE: there is one tile along that axis.

A function, so that a checkpoint of 40,000 matrices has one node for each and whoever knows the format need not guess it
from seven. DequantizeLinear has blocks along one axis only.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from datong.importer.body import Attrs, Body, overload
from datong.spec.formats import TABLES, WHOLE

TILES_INPUTS = ("codes", "scale", "factor", "zero")
_END = np.iinfo(np.int64).max


def dequantize_tiles(attributes: Attrs, present: Sequence[bool]) -> ir.Function:
    """The body of DequantizeTiles."""
    b = Body(TILES_INPUTS)
    codes = b.inputs["codes"]
    scale = b("Cast", b.inputs["scale"], to=ir.DataType.FLOAT)
    if present[2]:
        apart = b("Unsqueeze", b.inputs["factor"], b.ints(-1))
        scale = b("Div" if attributes["divide"] else "Mul", scale, apart)
    scale = _spread(b, scale, attributes)
    if attributes["table"] == "none":
        values = b("Cast", codes, to=ir.DataType.FLOAT)
    else:
        table = b("Constant", value=ir.tensor(np.array(TABLES[str(attributes["table"])], np.float32)))
        values = b("Gather", table, b("Cast", codes, to=ir.DataType.INT32), axis=0)
    if present[3]:
        values = b("Sub", values, _spread(b, b("Cast", b.inputs["zero"], to=ir.DataType.FLOAT), attributes))
    w = b("Mul", values, scale)
    return b.function("DequantizeTiles", overload(attributes, present), [w], attributes)


def _spread(b: Body, tiles: ir.Value, attributes: Attrs) -> ir.Value:
    """One number per tile -> one per value, or as many as broadcasting makes that of."""
    for axis, times in ((-2, int(attributes["rows"])), (-1, int(attributes["columns"]))):
        if 1 < times < WHOLE:
            tiles = _repeated(b, tiles, axis, times, b("Shape", b.inputs["codes"]))
    return tiles


def _repeated(b: Body, scale: ir.Value, axis: int, times: int, shape: ir.Value) -> ir.Value:
    """Each entry along `axis`, -1 or -2, `times` times, cut to the length that `shape` has there."""
    apart = b("Unsqueeze", scale, b.ints(axis if axis == -1 else -2))
    wide = b("Expand", apart, b.ints(*((times,) if axis == -1 else (times, 1))))
    before = b("Shape", scale, start=0, end=axis)
    after = [b("Shape", scale, start=-1)] if axis == -2 else []
    joined = b("Reshape", wide, b("Concat", before, b.ints(-1), *after, axis=0))
    length = b("Slice", shape, b.ints(axis), b.ints(_END if axis == -1 else axis + 1), b.ints(0))
    cut: ir.Value = b("Slice", joined, b.ints(0), length, b.ints(axis))
    return cut
