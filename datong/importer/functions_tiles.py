"""The function of domain `datong` that unpacks tile formats (spec/formats.py), with a body of stock ONNX.

    DequantizeTiles(codes, scale, factor) -> w                               codes * scale of the tile, f32

codes `[…, out, in]`, scale `[…, ceil(out / rows), ceil(in / columns)]`; `rows` and `columns` are those of a tile.
`table`: what codes stand for (TABLES of spec/formats.py), `none`: their own value. factor `[…, 1]`, may be absent:
scales are multiplied with it, or divided by it where `divide` is 1.

A function, so that a checkpoint of 40,000 matrices has one node for each and whoever knows the format need not guess it
from seven. DequantizeLinear has blocks along one axis only.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from datong.importer.body import Attrs, Body, overload
from datong.spec.formats import TABLES

TILES_INPUTS = ("codes", "scale", "factor")
_END = np.iinfo(np.int64).max


def dequantize_tiles(attributes: Attrs, present: Sequence[bool]) -> ir.Function:
    """The body of DequantizeTiles."""
    b = Body(TILES_INPUTS)
    codes = b.inputs["codes"]
    scale = b("Cast", b.inputs["scale"], to=ir.DataType.FLOAT)
    if present[2]:
        apart = b("Unsqueeze", b.inputs["factor"], b.ints(-1))
        scale = b("Div" if attributes["divide"] else "Mul", scale, apart)
    for axis, times in ((-2, int(attributes["rows"])), (-1, int(attributes["columns"]))):
        if times > 1:
            scale = _repeated(b, scale, axis, times, b("Shape", codes))
    if attributes["table"] == "none":
        values = b("Cast", codes, to=ir.DataType.FLOAT)
    else:
        table = b("Constant", value=ir.tensor(np.array(TABLES[str(attributes["table"])], np.float32)))
        values = b("Gather", table, b("Cast", codes, to=ir.DataType.INT32), axis=0)
    w = b("Mul", values, scale)
    return b.function("DequantizeTiles", overload(attributes, present), [w], attributes)


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
