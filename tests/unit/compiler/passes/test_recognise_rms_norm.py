import numpy as np
import onnx_ir as ir
import pytest

from datong.compiler import match
from datong.compiler.passes import recognise_rms_norm


@pytest.mark.parametrize("axis", [-1, 2])
def test_whole_width(tiny, axis):
    x, w = tiny.act(8), tiny.weight("w", [8])
    graph = tiny.run([tiny.node("RMSNormalization", x, w, axis=axis, epsilon=0.5)], recognise_rms_norm)
    node = tiny.only(graph, "rms_norm")
    assert node.inputs == (x, w)
    assert tiny.attrs(node) == {"eps": 0.5, "offset": 0.0}


def test_each_head(tiny):
    x, w = tiny.act(24), tiny.weight("w", [8], ir.DataType.BFLOAT16)
    heads = tiny.reshape(x, 0, 0, 3, 8)
    normed = tiny.node("RMSNormalization", heads, tiny.node("Cast", w, to=ir.DataType.FLOAT), name="q_norm")
    graph = tiny.run([tiny.reshape(normed, 0, 0, -1)], recognise_rms_norm)
    assert tiny.ops(graph) == ["datong::rms_norm"]
    node = tiny.only(graph, "rms_norm")
    assert node.inputs[0] is x and match.bound(node.inputs[1]).format == "bf16"
    assert match.dims(node.outputs[0]) == ("batch", "seq", 24)
    assert node.name.startswith("q_norm+")


@pytest.mark.parametrize("swap", [False, True])
def test_one_plus_weight(tiny, swap):
    w, one = tiny.weight("w", [8]), tiny.const(1.0, np.float32)
    scale = tiny.node("Add", *((one, w) if swap else (w, one)))
    graph = tiny.run([tiny.node("RMSNormalization", tiny.act(8), scale)], recognise_rms_norm)
    node = tiny.only(graph, "rms_norm")
    assert node.inputs[1] is w
    assert tiny.attrs(node)["offset"] == 1.0
    assert tiny.ops(graph) == ["datong::rms_norm"]


def two_plus_weight(t):
    return t.node("RMSNormalization", t.act(8), t.node("Add", t.weight("w", [8]), t.const(2.0, np.float32)))


def over_seq(t):
    return t.node("RMSNormalization", t.act(8), t.weight("w", [8]), axis=1)


def heads_not_joined(t):
    return t.node("RMSNormalization", t.reshape(t.act(24), 0, 0, 3, 8), t.weight("w", [8]))


def computed_scale(t):
    return t.node("RMSNormalization", t.act(8), t.act(8))


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (two_plus_weight, "plain weight"),
        (over_seq, "last axis only"),
        (heads_not_joined, "one back"),
        (computed_scale, "plain weight"),
    ],
)
def test_other_norms_are_noted(tiny, build, text):
    graph = tiny.run([build(tiny)], recognise_rms_norm)
    assert text in tiny.why(graph, "RMSNormalization")
