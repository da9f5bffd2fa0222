import numpy as np
import onnx_ir as ir
import pytest

from datong.compiler import match, shapes
from datong.compiler.passes import infer_shapes

B, S = "batch", "seq"


@pytest.mark.parametrize(
    ("a", "b", "out"),
    [
        ((B, S, 4), (4,), (B, S, 4)),
        ((B, S, 1), (3,), (B, S, 3)),
        ((B, 1, 4), (B, S, 4), (B, S, 4)),
        ((B, S, 4), (B, S, 3), None),
        ((B, S), (S, B), None),
    ],
)
def test_broadcast(a, b, out):
    assert shapes.broadcast(a, b) == out


@pytest.mark.parametrize(
    ("shape", "target", "out"),
    [
        ((B, S, 12), [0, 0, 3, 4], (B, S, 3, 4)),
        ((B, S, 12), [0, 0, 3, -1], (B, S, 3, 4)),
        ((B, S, 3, 4), [0, 0, -1], (B, S, 12)),
        ((B, S, 12), [0, -1, 12], (B, S, 12)),
        ((B, S, 12), [-1, 12], None),  # batch and seq become one
        ((B, S, 12), [0, -1, 6], None),  # seq doubles
        ((B, S, 12), [0, 0, 5, -1], None),
        ((B, S, 12), [0, 0, 11], None),
        ((B, S, 12), [0, 0, 12, 0], None),
        ((6, 4), [3, -1], (3, 8)),
        ((6, 4), [-1, -1], None),
    ],
)
def test_reshape(shape, target, out):
    assert shapes.reshape(shape, target) == out


def test_reshape_with_allowzero_is_not_guessed():
    assert shapes.reshape((B, S, 12), [0, 0, 12], allow_zero=True) is None


@pytest.mark.parametrize(
    ("bounds", "out"),
    [
        (([0], [3], [2]), (B, S, 3)),
        (([2], [2**62], [-1]), (B, S, 6)),
        (([-3], [-1], [2]), (B, S, 2)),
        (([0], [8], [2], [2]), None),
        (([0], [1], [1]), None),  # seq
        (([5], [5], [2]), None),
        (([0, 0], [1, 1], [1, 2]), None),
    ],
)
def test_slice(tiny, bounds, out):
    got = tiny.node("Slice", tiny.act(8), *map(tiny.const, bounds))
    tiny.run([got])
    assert match.dims(got) == out


def test_operators_of_a_decoder(tiny):
    x = tiny.act(8)
    q = tiny.linear(x, tiny.weight("w", [16, 8]))
    k, v = tiny.act(8), tiny.act(4)
    y = tiny.node("Attention", q, k, v, q_num_heads=4, kv_num_heads=2, outputs=["y", "pk", "pv"])[0]
    cos, _ = tiny.table(2)
    ids = tiny.node("Gather", tiny.weight("e", [5, 8]), tiny.ids())
    constant = tiny.node("Constant", value_floats=[1.0, 2.0])
    tiny.run([y, cos, ids, constant])
    assert match.dims(q) == (B, S, 16)
    assert match.dims(y) == (B, S, 8)  # heads x the width of a value
    assert match.dims(cos) == (B, S, 2)
    assert match.dims(ids) == (B, S, 8)
    assert match.dims(constant) == (2,)


def test_unknown_operators_and_odd_nodes_stay_unknown(tiny):
    x = tiny.act(8)
    odd = [
        tiny.node("Mystery", x, domain="com.example"),
        tiny.node("Unsqueeze", x),
        tiny.node("MatMul", x),
        tiny.node("Transpose", x, perm=[0, 0, 1]),
        tiny.node("Reshape", x, x),
        tiny.node("Add", x, tiny.node("NoSuchOp")),
        tiny.node("Gather", x, tiny.ids(), axis="no"),
    ]
    tiny.run(odd)
    assert [match.dims(value) for value in odd] == [None] * len(odd)


def test_shapes_in_the_file_are_not_believed(tiny):
    x = tiny.act(8)
    lie = tiny.node("Mystery", x, domain="com.example")
    lie.shape = ir.Shape(["batch", "seq", 8])
    tiny.run([lie])
    assert match.dims(lie) is None


def test_infer_counts(tiny):
    graph = tiny.graph(tiny.node("Sigmoid", tiny.act(8)))
    assert infer_shapes.run(graph, tiny.root) == 1


def test_large_inline_constants_are_not_read(tiny):
    assert match.constant(tiny.const(np.zeros(match.INLINE_LIMIT + 1), np.float32)) is None
    assert match.constant(tiny.const(np.zeros(3), np.float32)).tolist() == [0, 0, 0]
