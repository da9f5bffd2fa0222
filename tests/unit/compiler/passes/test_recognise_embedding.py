import onnx_ir as ir
import pytest

from datong.compiler import match
from datong.compiler.passes import recognise_embedding

BF16, F32 = ir.DataType.BFLOAT16, ir.DataType.FLOAT


def test_gather_by_id(tiny):
    w, ids = tiny.weight("w", [5, 8]), tiny.ids()
    graph = tiny.run([tiny.node("Gather", w, ids, axis=0)], recognise_embedding)
    assert tiny.ops(graph) == ["datong::embedding"]
    assert graph.node(0).inputs == (ids, w)


@pytest.mark.parametrize("first", ["cast", "gather"])
def test_half_tables_are_cast_before_or_after(tiny, first):
    w, ids = tiny.weight("w", [5, 8], BF16), tiny.ids()
    out = (
        tiny.node("Gather", tiny.node("Cast", w, to=F32), ids)
        if first == "cast"
        else tiny.node("Cast", tiny.node("Gather", w, ids), to=F32)
    )
    graph = tiny.run([out], recognise_embedding)
    assert tiny.ops(graph) == ["datong::embedding"]
    assert match.bound(graph.node(0).inputs[1]).format == "bf16"


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda t: t.node("Gather", t.weight("w", [5, 8]), t.ids(), axis=1), "along axis 0"),
        (lambda t: t.node("Gather", t.weight("w", [5, 8]), t.ids("position_ids")), "`input_ids`"),
        (lambda t: t.node("Gather", t.act(8), t.ids()), "rows of a weight"),
        (lambda t: t.node("Gather", t.weight("w", [5, 8], BF16), t.ids()), "casts them to f32"),
    ],
)
def test_other_gathers_are_noted(tiny, build, text):
    graph = tiny.run([build(tiny)], recognise_embedding)
    assert text in tiny.why(graph, "Gather")
