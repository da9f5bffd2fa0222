import onnx_ir as ir

from datong.compiler.passes import drop_noops


def test_identity_and_reshape_to_the_same_shape(tiny):
    x = tiny.act(12)
    y = tiny.node("Identity", tiny.node("Dropout", tiny.reshape(x, 0, 0, 12)))
    out = tiny.node("Sigmoid", y)
    graph = tiny.run([out], drop_noops)
    assert tiny.ops(graph) == ["Sigmoid"]
    assert graph.node(0).inputs[0] is x


def test_reshape_there_and_back(tiny):
    x = tiny.act(12)
    graph = tiny.run([tiny.node("Sigmoid", tiny.reshape(tiny.reshape(x, 0, 0, 3, 4), 0, 0, -1))], drop_noops)
    assert tiny.ops(graph) == ["Sigmoid"]


def test_packed_rows_between_operators_stay(tiny):
    """From heads to packed and to heads again: a slice before and a norm after each look for the packed form."""
    heads = tiny.node("Sigmoid", tiny.reshape(tiny.act(12), 0, 0, 3, 4))
    again = tiny.reshape(tiny.reshape(heads, 0, 0, 12), 0, 0, 3, 4)
    graph = tiny.run([tiny.node("Sigmoid", again)], drop_noops)
    assert tiny.ops(graph) == ["Reshape", "Sigmoid", "Reshape", "Reshape", "Sigmoid"]


def test_reshapes_that_do_something_stay(tiny):
    x = tiny.act(12)
    heads = tiny.reshape(tiny.reshape(x, 0, 0, 3, 4), 0, 0, 2, 6)
    graph = tiny.run([tiny.reshape(tiny.node("Sigmoid", heads), 0, 0, 12)], drop_noops)
    assert tiny.ops(graph) == ["Reshape", "Reshape", "Sigmoid", "Reshape"]


def test_casts(tiny):
    x = tiny.act(12)
    same = tiny.node("Cast", x, to=ir.DataType.FLOAT)
    other = tiny.node("Cast", x, to=ir.DataType.FLOAT16)
    graph = tiny.run([tiny.node("Sigmoid", same), other], drop_noops)
    assert tiny.ops(graph) == ["Cast", "Sigmoid"] or tiny.ops(graph) == ["Sigmoid", "Cast"]


def test_a_graph_output_keeps_its_name(tiny):
    made = tiny.node("Sigmoid", tiny.act(12))
    graph = tiny.run([tiny.node("Identity", made, outputs=["logits"])], drop_noops)
    assert tiny.ops(graph) == ["Sigmoid"]
    assert [value.name for value in graph.outputs] == ["logits"]


def test_an_input_does_not_become_an_output(tiny):
    graph = tiny.run([tiny.node("Identity", tiny.act(12), outputs=["logits"])], drop_noops)
    assert tiny.ops(graph) == ["Identity"]
