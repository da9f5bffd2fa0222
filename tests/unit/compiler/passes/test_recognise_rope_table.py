import numpy as np
import onnx_ir as ir
import pytest

from datong.compiler import match
from datong.compiler.passes import recognise_rope_table


def rotate(tiny, cos, sin):
    return tiny.node("RotaryEmbedding", tiny.act(16), cos, sin, num_heads=2)


@pytest.mark.parametrize("scale", [1.0, 1.25])
def test_table_of_positions(tiny, scale):
    graph = tiny.run([rotate(tiny, *tiny.table(4, scale))], recognise_rope_table)
    assert tiny.ops(graph) == ["datong::rope_table", "RotaryEmbedding"]
    node = tiny.only(graph, "rope_table")
    assert node.inputs[0].name == "position_ids" and match.constant(node.inputs[1]).size == 4
    assert tiny.attrs(node) == {"scale": scale}
    assert [match.dims(v) for v in node.outputs] == [("batch", "seq", 4)] * 2
    assert graph.node(1).inputs[1:] == tuple(node.outputs)


def test_one_table_for_many_layers(tiny):
    table = tiny.table(4)
    graph = tiny.run([rotate(tiny, *table), rotate(tiny, *table)], recognise_rope_table)
    assert tiny.ops(graph) == ["datong::rope_table", "RotaryEmbedding", "RotaryEmbedding"]


def test_cast_after_unsqueeze_and_swapped_factors(tiny):
    column = tiny.node("Cast", tiny.node("Unsqueeze", tiny.ids("position_ids"), tiny.const([2])), to=ir.DataType.FLOAT)
    angle = tiny.node("Mul", tiny.const([[[1.0, 0.1]]], np.float32), column)
    graph = tiny.run([rotate(tiny, tiny.node("Cos", angle), tiny.node("Sin", angle))], recognise_rope_table)
    assert tiny.ops(graph) == ["datong::rope_table", "RotaryEmbedding"]


def two_angles(t):
    return rotate(t, t.table(4)[0], t.table(4)[1])


def sines_twice(t):
    angle = t.table(4)[0].producer().inputs[0]
    return rotate(t, t.node("Sin", angle), t.node("Sin", angle))


def two_scales(t):
    cos, sin = t.table(4)
    return rotate(t, cos, t.node("Mul", sin, t.const(2.0, np.float32)))


def angle_of_ids(t):
    column = t.node("Unsqueeze", t.node("Cast", t.ids(), to=ir.DataType.FLOAT), t.const([-1]))
    angle = t.node("Mul", column, t.const([1.0], np.float32))
    return rotate(t, t.node("Cos", angle), t.node("Sin", angle))


def frequencies_in_a_file(t):
    column = t.node("Unsqueeze", t.node("Cast", t.ids("position_ids"), to=ir.DataType.FLOAT), t.const([-1]))
    angle = t.node("Mul", column, t.weight("inv_freq", [4]))
    return rotate(t, t.node("Cos", angle), t.node("Sin", angle))


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (two_angles, "same angle"),
        (sines_twice, "should be Cos and Sin"),
        (two_scales, "same scale"),
        (angle_of_ids, "position_ids as f32 times"),
        (frequencies_in_a_file, "inline f32 inv_freq"),
    ],
)
def test_other_tables_are_noted(tiny, build, text):
    graph = tiny.run([build(tiny)], recognise_rope_table)
    assert text in tiny.why(graph, "RotaryEmbedding")
