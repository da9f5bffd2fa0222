import numpy as np
import onnx_ir as ir
import pytest

from datong.compiler import match
from datong.compiler.passes import recognise_linear


def test_matmul_with_a_transposed_weight(tiny):
    x, w = tiny.act(8), tiny.weight("w", [4, 8])
    graph = tiny.run([tiny.linear(x, w, "proj")], recognise_linear)
    assert tiny.ops(graph) == ["datong::linear"]
    node = graph.node(0)
    assert node.inputs == (x, w) and node.name == "proj"
    assert match.dims(node.outputs[0]) == ("batch", "seq", 4)


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("inline", [False, True])
def test_bias_in_either_order(tiny, swap, inline):
    x, w = tiny.act(8), tiny.weight("w", [4, 8])
    bias = tiny.const(np.ones(4), np.float32) if inline else tiny.weight("b", [4])
    y = tiny.linear(x, w, "proj")
    out = tiny.node("Add", *((bias, y) if swap else (y, bias)), name="biased")
    graph = tiny.run([out], recognise_linear)
    assert tiny.ops(graph) == ["datong::linear"]
    assert graph.node(0).inputs == (x, w, bias)
    assert graph.node(0).name == "proj+biased"
    assert graph.outputs[0].name == "biased.out"


def test_a_shared_product_keeps_its_add(tiny):
    y = tiny.linear(tiny.act(8), tiny.weight("w", [4, 8]))
    graph = tiny.run([tiny.node("Add", y, tiny.weight("b", [4])), tiny.node("Sigmoid", y)], recognise_linear)
    assert sorted(tiny.ops(graph)) == ["Add", "Sigmoid", "datong::linear"]


def test_a_residual_is_no_bias(tiny):
    graph = tiny.run(
        [tiny.node("Add", tiny.linear(tiny.act(8), tiny.weight("w", [4, 8])), tiny.act(4))], recognise_linear
    )
    assert tiny.ops(graph) == ["datong::linear", "Add"]


def test_shared_weight_and_transpose(tiny):
    turned = tiny.node("Transpose", tiny.weight("w", [8, 8]), perm=[1, 0])
    graph = tiny.run([tiny.node("MatMul", tiny.node("MatMul", tiny.act(8), turned), turned)], recognise_linear)
    assert tiny.ops(graph) == ["datong::linear"] * 2


def not_transposed(tiny):
    return tiny.node("MatMul", tiny.act(8), tiny.weight("w", [8, 4]))


def two_activations(tiny):
    return tiny.node("MatMul", tiny.act(8), tiny.node("Transpose", tiny.act(8), perm=[0, 2, 1]))


def wrong_perm(tiny):
    return tiny.node("MatMul", tiny.act(8), tiny.node("Transpose", tiny.weight("w", [8, 8]), perm=[0, 1]))


def half_activations(tiny):
    return tiny.linear(tiny.act(8), tiny.weight("w", [4, 8], ir.DataType.BFLOAT16))


def inline_matrix(tiny):
    return tiny.linear(tiny.act(8), tiny.const(np.ones((4, 8)), np.float32))


def per_head(tiny):
    return tiny.linear(tiny.reshape(tiny.act(16), 0, 0, 2, 8), tiny.weight("w", [4, 8]))


def scaled_weight(tiny):
    w = tiny.node("Mul", tiny.weight("w", [4, 8]), tiny.const(2.0, np.float32))
    return tiny.linear(tiny.act(8), w)


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (not_transposed, "stored [in, out]"),
        (two_activations, "computed in the graph"),
        (wrong_perm, "transposed once"),
        (half_activations, "not a plain or block format in a file, as f32"),
        (inline_matrix, "not a plain or block format in a file"),
        (per_head, "its input should be [batch, seq, 8], it is [batch, seq, 2, 8]"),
        (scaled_weight, "computed in the graph"),
    ],
)
def test_other_products_are_noted(tiny, build, text):
    graph = tiny.run([build(tiny)], recognise_linear)
    assert text in tiny.why(graph, "MatMul")
