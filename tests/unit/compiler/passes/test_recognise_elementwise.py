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
        lambda t: t.node("Mul", t.act(8), t.const([2.0, 3.0], np.float32)),
        lambda t: t.node("Mul", t.act(8), t.weight("w", [8])),
        lambda t: t.node("Mul", t.reshape(t.act(8), 0, 0, 2, 4), t.reshape(t.act(8), 0, 0, 2, 4)),
    ],
)
def test_broadcasts_are_noted(tiny, build):
    graph = tiny.run([build(tiny)], recognise_elementwise)
    assert "one width" in tiny.why(graph, "Mul")


def test_a_number_is_a_scale(tiny):
    x = tiny.act(8)
    graph = tiny.run([tiny.node("Mul", tiny.const(2.5, np.float32), x)], recognise_elementwise)
    assert tiny.ops(graph) == ["datong::scale"]
    assert list(graph.node(0).inputs) == [x] and graph.node(0).attributes["factor"].value == 2.5


@pytest.mark.parametrize("turned", [False, True])
def test_one_number_per_token_is_scale_groups(tiny, turned):
    x, gate = tiny.act(8), tiny.act(1)
    graph = tiny.run([tiny.node("Mul", *([gate, x] if turned else [x, gate]))], recognise_elementwise)
    assert tiny.ops(graph) == ["datong::scale_groups"] and list(graph.node(0).inputs) == [x, gate]


@pytest.mark.parametrize("turned", [False, True])
def test_one_number_per_group_is_scale_groups(tiny, turned):
    x, gates = tiny.act(8), tiny.act(2)
    column = tiny.node("Unsqueeze", gates, tiny.const([-1], np.int64))
    pair = [column, tiny.reshape(x, 0, 0, 2, 4)] if turned else [tiny.reshape(x, 0, 0, 2, 4), column]
    graph = tiny.run([tiny.reshape(tiny.node("Mul", *pair), 0, 0, 8)], recognise_elementwise)
    assert tiny.ops(graph) == ["datong::scale_groups"] and list(graph.node(0).inputs) == [x, gates]
