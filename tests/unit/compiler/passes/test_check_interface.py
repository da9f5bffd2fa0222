import pytest

from datong.compiler.passes import check_interface
from datong.errors import CompileError


def decoder(tiny, *, extra=(), drop=(), present="present.0.key", state=""):
    """A graph with the right inputs and outputs, but for what a test changes."""
    ids = tiny.input("input_ids", ["b", "s"], dtype=_i64()) if "input_ids" not in drop else None
    pasts = [tiny.input(f"past_key_values.0.{kind}", ["b", 2, "p", 8]) for kind in ("key", "value")]
    for name, dims, dtype in extra:
        tiny.input(name, dims, dtype)
    logits = tiny.node("Identity", ids or pasts[0], outputs=["logits"])
    presents = [tiny.node("Identity", p, outputs=[n]) for p, n in zip(pasts, [present, "present.0.value"], strict=True)]
    presents += [tiny.node("Identity", tiny.inputs[-1], outputs=[state])] if state else []
    return tiny.graph(*([] if "logits" in drop else [logits]), *presents)


def _i64():
    import onnx_ir as ir

    return ir.DataType.INT64


def _f32():
    import onnx_ir as ir

    return ir.DataType.FLOAT


def test_labels_the_states(tiny):
    graph = decoder(tiny, extra=[("past_state.1.recurrent", ["b", 2, 8, 3], _f32())], state="present_state.1.recurrent")
    check_interface.run(graph, tiny.root)
    assert graph.inputs[-1].meta["dims"] == ("batch", 2, 8, 3)


def test_labels_the_inputs(tiny):
    graph = decoder(tiny, extra=[("position_ids", ["b", "s"], _i64())])
    check_interface.run(graph, tiny.root)
    assert [value.meta["dims"] for value in graph.inputs] == [
        ("batch", "seq"),
        ("batch", 2, "past", 8),
        ("batch", 2, "past", 8),
        ("batch", "seq"),
    ]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"extra": [("attention_mask", ["b", "s"], _i64())]}, "input `attention_mask`"),
        ({"extra": [("position_ids", [1, "s"], _i64())]}, "input `position_ids` should be [batch, seq]"),
        ({"extra": [("past_key_values.1.key", ["b", "h", "p", 8], _i64())]}, "input `past_key_values.1.key` should be"),
        ({"extra": [("past_state.1.conv", ["b", 1, "c", 3], _f32())]}, "input `past_state.1.conv` should be"),
        ({"extra": [("past_state.1.conv", ["b", 1, 8, 3], _f32())]}, "unpaired: ['1.conv']"),
        ({"extra": [("past_state.1.other", ["b", 1, 8, 3], _f32())]}, "input `past_state.1.other` should be"),
        ({"drop": ["input_ids"]}, "should have an input `input_ids`"),
        ({"drop": ["logits"]}, "should have an output `logits`"),
        ({"present": "present.1.key"}, "unpaired: ['0.key', '1.key']"),
        ({"present": "other"}, "output `other`"),
    ],
)
def test_refuses_with_the_name(tiny, change, text):
    graph = decoder(tiny, **change)
    with pytest.raises(CompileError) as error:
        check_interface.run(graph, tiny.root)
    assert text in str(error.value)
