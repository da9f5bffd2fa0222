import numpy as np
import onnx_ir as ir
import pytest

from datong.compiler import match
from datong.compiler.passes import bind_block_weights, bind_weights
from datong.spec import formats

F32 = ir.DataType.FLOAT
OUT, IN = 3, 512
BLOCK_FORMATS = [f.name for f in formats.ALL if f.block and not f.tile]


def chain(tiny, fmt, *, shapes=None, sign=None, block=None, end=(OUT, IN), axis=2, logical=(OUT, IN)):
    """The stock form of spec/formats.py, written here a second time on purpose."""
    shapes = shapes or {}

    def piece(role):
        dtype, shape = fmt.piece_dtype(role), shapes.get(role) or fmt.piece_shape(role, *logical)
        data = np.zeros(dtype.nbytes(int(np.prod(shape))), dtype=np.uint8)
        name = "w" if role == "codes" else f"w.{role}"
        return tiny.weight(name, shape, ir.DataType(dtype.onnx), data)

    def level(role):
        if not fmt.super_block:
            return tiny.node("Cast", piece(role), to=F32)
        factors = [tiny.node("Cast", piece(r), to=F32) for r in (f"super_{role}", role)]
        return tiny.reshape(tiny.node("Mul", *factors), *logical[:-1], -1, 1)

    w = tiny.node(
        "DequantizeLinear", piece("codes"), level("scale"), axis=axis, block_size=block or fmt.block, name="dequantize"
    )
    if fmt.has_min:
        w = tiny.node("Add" if (sign or fmt.min_sign) == 1 else "Sub", w, level("min"))
    return tiny.node("Transpose", tiny.reshape(w, *end), perm=[1, 0] if len(end) == 2 else [0, 2, 1])


def bind(tiny, out):
    graph = tiny.graph(out)
    bind_weights.run(graph, tiny.root)
    bind_block_weights.run(graph, tiny.root)
    return graph


@pytest.mark.parametrize("name", BLOCK_FORMATS)
def test_every_format_is_recognised(tiny, name):
    fmt = formats.BY_NAME[name]
    graph = bind(tiny, chain(tiny, fmt))
    assert tiny.ops(graph) == ["Transpose"]
    weight = match.bound(graph.node(0).inputs[0])
    alike = {"q5_0": "q8_0"}  # the same pieces: the graph does not say which, and q8_0 is always true
    assert (weight.name, weight.format, weight.shape) == ("w", alike.get(name, name), (OUT, IN))
    assert tuple(p.role for p in weight.pieces) == fmt.pieces
    for piece in weight.pieces:
        assert piece.shape == fmt.piece_shape(piece.role, OUT, IN)
        assert piece.dtype == fmt.piece_dtype(piece.role).name


@pytest.mark.parametrize("name", BLOCK_FORMATS)
def test_a_stack_of_experts_is_one_weight(tiny, name):
    fmt, shape = formats.BY_NAME[name], (5, OUT, IN)
    graph = bind(tiny, chain(tiny, fmt, logical=shape, end=shape, axis=3))
    weight = match.bound(graph.node(0).inputs[0])
    assert weight.shape == shape
    assert [p.shape for p in weight.pieces] == [fmt.piece_shape(role, *shape) for role in fmt.pieces]


Q4_1, Q4_K = formats.Q4_1, formats.Q4_K


@pytest.mark.parametrize(
    ("fmt", "change", "text"),
    [
        (Q4_1, {"sign": -1}, "no row of spec/formats.py"),
        (Q4_1, {"block": 64}, "no row of spec/formats.py has blocks of 64"),
        (Q4_1, {"axis": 1}, "along axis 2, they lie along 1"),
        (Q4_1, {"end": (OUT * IN,)}, "Reshape to [out, in]"),
        (Q4_1, {"end": (OUT * 2, IN // 2)}, "should be [6, 8, 32]"),
        (Q4_K, {"shapes": {"super_min": (1, 2, 1)}}, "the super_min of `w`"),
    ],
)
def test_other_forms_are_noted(tiny, fmt, change, text):
    graph = bind(tiny, chain(tiny, fmt, **change))
    assert text in tiny.why(graph, "DequantizeLinear")


def test_computed_codes_are_noted(tiny):
    codes = tiny.node("Cast", tiny.act(32), to=ir.DataType.INT8)
    scale = tiny.node("Cast", tiny.weight("w.scale", [1, 1, 1], ir.DataType.FLOAT16), to=F32)
    out = tiny.reshape(tiny.node("DequantizeLinear", codes, scale, axis=2, block_size=32), 1, 32)
    assert "the codes of `Cast_0.out` should be an initializer" in tiny.why(bind(tiny, out), "DequantizeLinear")


def test_zero_points_are_noted(tiny):
    fmt = formats.Q8_0
    chain(tiny, fmt)
    node = next(n for n in tiny.nodes if n.op_type == "DequantizeLinear")
    node.resize_inputs(3)
    node.replace_input_with(2, tiny.const([0], np.int8))
    assert "no zero point" in tiny.why(bind(tiny, tiny.nodes[-1].outputs[0]), "DequantizeLinear")
