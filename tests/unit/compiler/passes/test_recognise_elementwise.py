import numpy as np
import pytest

from datong.compiler.passes import recognise_elementwise


@pytest.mark.parametrize(("op", "count"), [("Add", 2), ("Mul", 2), ("Sigmoid", 1)])
def test_whole_rows(tiny, op, count):
    inputs = [tiny.act(8) for _ in range(count)]
    graph = tiny.run([tiny.node(op, *inputs)], recognise_elementwise)
    assert tiny.ops(graph) == [f"datong::{op.lower()}"]
    assert list(graph.node(0).inputs) == inputs


@pytest.mark.parametrize(
    "build",
    [
        lambda t: t.node("Mul", t.act(8), t.const(2.0, np.float32)),
        lambda t: t.node("Mul", t.act(8), t.act(1)),
        lambda t: t.node("Mul", t.act(8), t.weight("w", [8])),
        lambda t: t.node("Mul", t.reshape(t.act(8), 0, 0, 2, 4), t.reshape(t.act(8), 0, 0, 2, 4)),
    ],
)
def test_broadcasts_are_noted(tiny, build):
    graph = tiny.run([build(tiny)], recognise_elementwise)
    assert "one width" in tiny.why(graph, "Mul")
