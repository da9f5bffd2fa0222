"""Functions of domain `datong` for attention over chosen keys, with bodies of stock ONNX.

    SelectKeys(q, k, weights, past_index) -> chosen, present_index                               spec `select_keys`
    SparseAttention(q, k, v, chosen, past_key, past_value) -> y, present_key, present_value      spec `sparse_attention`

Activations are `[batch, seq, n]`, `chosen` `[batch, seq, G * K]`, caches `[batch, heads, past, dim]`. ONNX's TopK gives
of equals the lowest index, as the definition wants it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from datong.importer.body import Attrs, Body, overload

SELECT_INPUTS = ("q", "k", "weights", "past_index")
SPARSE_INPUTS = ("q", "k", "v", "chosen", "past_key", "past_value")
NOWHERE = 1e9  # above any block's number


def select_keys(attributes: Attrs, present: Sequence[bool]) -> ir.Function:
    """The body of SelectKeys."""
    b = Body(SELECT_INPUTS)
    heads, groups, top, block, local = (
        int(attributes[name]) for name in ("num_heads", "groups", "top_k", "block", "local")
    )
    keys = b("Concat", b.inputs["past_index"], b("Unsqueeze", b.inputs["k"], b.ints(1)), axis=2)  # [b, 1, total, D]
    q = b("Transpose", b("Reshape", b.inputs["q"], b.ints(0, 0, heads, -1)), perm=[0, 2, 1, 3])
    score = b("Mul", b("MatMul", q, b("Transpose", keys, perm=[0, 1, 3, 2])), b.real(float(attributes["scale"])))
    if attributes["kind"] == "relu":
        score = b("Relu", score)
    if present[SELECT_INPUTS.index("weights")]:
        score = b("Mul", score, b("Unsqueeze", b("Transpose", b.inputs["weights"], perm=[0, 2, 1]), b.ints(3)))
    if heads != groups:  # [b, H, seq, total] -> [b, G, seq, total]
        apart = b("Concat", b.size(score, 0), b.ints(groups, heads // groups), b("Shape", score, start=2), axis=0)
        score = b("ReduceSum", b("Reshape", score, apart), b.ints(2), keepdims=0)
    places, every, total = places_of(b, b.inputs["past_index"], b.inputs["k"], 1)
    score = b("Where", b("GreaterOrEqual", places, every), score, b.real(-np.inf))
    one, zero = b("Squeeze", b.ints(1)), b("Squeeze", b.ints(0))
    size = b("Squeeze", b.ints(block))
    count = b("Div", b("Add", total, b("Squeeze", b.ints(block - 1))), size)
    if block > 1:
        missing = b("Unsqueeze", b("Sub", b("Mul", count, size), total), b.ints(0))
        padded = b("Pad", score, b("Concat", b.ints(0), missing, axis=0), b.real(-np.inf), b.ints(3))
        blocks = b("Concat", b("Shape", score, end=3), b("Unsqueeze", count, b.ints(0)), b.ints(block), axis=0)
        score = b("ReduceMax", b("Reshape", padded, blocks), b.ints(4), keepdims=0)
    numbers = b("Range", zero, count, one)
    if local:
        behind = b("Sub", b("Div", places, size), numbers)
        near = b("And", b("GreaterOrEqual", behind, zero), b("Less", behind, b("Squeeze", b.ints(local))))
        score = b("Where", near, b.real(np.inf), score)
    many = b("Min", b.ints(top), b("Unsqueeze", count, b.ints(0)))
    best, index = b("TopK", score, many, outputs=2, axis=-1)
    found = b("Where", b("Equal", best, b.real(-np.inf)), b.real(NOWHERE), b("Cast", index, to=ir.DataType.FLOAT))
    ordered, _ = b("TopK", found, many, outputs=2, axis=-1, largest=0)
    chosen = b("Where", b("Less", ordered, b.real(NOWHERE)), ordered, b.real(-1.0))
    fewer = b("Concat", b.ints(0), b("Sub", b.ints(top), many), axis=0)
    filled = b("Pad", chosen, fewer, b.real(-1.0), b.ints(3))  # [b, G, seq, K]
    result = b("Reshape", b("Transpose", filled, perm=[0, 2, 1, 3]), b.ints(0, 0, groups * top))
    return b.function("SelectKeys", overload(attributes, present), [result, keys], attributes)


def sparse_attention(attributes: Attrs, present: Sequence[bool]) -> ir.Function:
    """The body of SparseAttention."""
    b = Body(SPARSE_INPUTS)
    heads, kv_heads, groups, block = (
        int(attributes[name]) for name in ("num_heads", "num_kv_heads", "groups", "block")
    )
    q, k, v = (
        b("Transpose", b("Reshape", b.inputs[name], b.ints(0, 0, count, -1)), perm=[0, 2, 1, 3])
        for name, count in (("q", heads), ("k", kv_heads), ("v", kv_heads))
    )
    keys = b("Concat", b.inputs["past_key"], k, axis=2)
    values = b("Concat", b.inputs["past_value"], v, axis=2)
    places, every, total = places_of(b, b.inputs["past_key"], k, 2)
    one, zero, size = b("Squeeze", b.ints(1)), b("Squeeze", b.ints(0)), b("Squeeze", b.ints(block))
    count = b("Div", b("Add", total, b("Squeeze", b.ints(block - 1))), size)
    chosen = b("Transpose", b("Reshape", b.inputs["chosen"], b.ints(0, 0, groups, -1)), perm=[0, 2, 1, 3])
    marks = marks_of(b, chosen, count, (zero, one))
    owner = b("Div", b("Range", zero, total, one), size)
    picked = b("Greater", b("Gather", marks, owner, axis=3), b.real(0.5))  # [b, G, seq, total]
    seen = b("And", picked, b("GreaterOrEqual", places, every))
    score = b("MatMul", q, b("Transpose", _wide(b, keys, heads // kv_heads, heads), perm=[0, 1, 3, 2]))
    score = b("Mul", score, b.real(float(attributes["scale"])))
    mask = _wide(b, b("Cast", seen, to=ir.DataType.FLOAT), heads // groups, heads)
    score = b("Where", b("Greater", mask, b.real(0.5)), score, b.real(-np.inf))
    y = b("MatMul", b("Softmax", score, axis=-1), _wide(b, values, heads // kv_heads, heads))
    packed = b("Reshape", b("Transpose", y, perm=[0, 2, 1, 3]), b.ints(0, 0, -1))
    return b.function("SparseAttention", overload(attributes, present), [packed, keys, values], attributes)


def marks_of(b: Body, chosen: ir.Value, count: ir.Value, numerals: tuple[ir.Value, ir.Value]) -> ir.Value:
    """Blocks that are among chosen [b, G, seq, K], -1 for none, are 1, others 0: [b, G, seq, count + 1] f32.

    What nobody chose falls behind the last block. `numerals` are the scalars 0 and 1.
    """
    numbers = b("Cast", chosen, to=ir.DataType.INT64)
    safe = b("Where", b("Less", numbers, numerals[0]), count, numbers)
    width = b("Unsqueeze", b("Add", count, numerals[1]), b.ints(0))
    empty = b("Expand", b.real(0.0), b("Concat", b("Shape", chosen, end=3), width, axis=0))
    ones = b("Expand", b.real(1.0), b("Shape", chosen))
    marks: ir.Value = b("ScatterElements", empty, safe, ones, axis=3)
    return marks


def places_of(b: Body, past: ir.Value, new: ir.Value, axis: int) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Places of the new tokens [seq, 1], of all keys [1, total], and how many keys there are."""
    before, more = b("Squeeze", b.size(past, 2)), b("Squeeze", b.size(new, axis))
    total = b("Add", before, more)
    one, zero = b("Squeeze", b.ints(1)), b("Squeeze", b.ints(0))
    own = b("Unsqueeze", b("Range", before, total, one), b.ints(1))
    return own, b("Unsqueeze", b("Range", zero, total, one), b.ints(0)), total


def _wide(b: Body, x: ir.Value, times: int, heads: int) -> ir.Value:
    """[b, h, m, n] -> [b, heads, m, n], each head `times` times."""
    if times == 1:
        return x
    wide = b("Expand", b("Unsqueeze", x, b.ints(2)), b.ints(1, 1, times, 1, 1))
    y: ir.Value = b("Reshape", wide, b("Concat", b.size(x, 0), b.ints(heads), b("Shape", x, start=2), axis=0))
    return y
