import itertools

import pytest

from datong.compiler.passes import recognise_glu


@pytest.mark.parametrize("order", list(itertools.permutations("gsu")), ids="".join)
@pytest.mark.parametrize("swap", [False, True])
def test_three_factors_in_any_order(tiny, order, swap):
    gate, up = tiny.act(8, "gate"), tiny.act(8, "up")
    factors = {"g": gate, "u": up, "s": tiny.node("Sigmoid", gate)}
    inner = tiny.node("Mul", factors[order[0]], factors[order[1]])
    pair = (inner, factors[order[2]])
    graph = tiny.run([tiny.node("Mul", *(reversed(pair) if swap else pair), name="glu")], recognise_glu)
    assert tiny.ops(graph) == ["datong::glu"]
    assert graph.node(0).inputs == (gate, up)
    assert tiny.attrs(graph.node(0)) == {"kind": "silu"}


@pytest.mark.parametrize("swap", [False, True])
def test_swish(tiny, swap):
    gate, up = tiny.act(8), tiny.act(8)
    pair = (tiny.node("Swish", gate, alpha=1.0), up)
    graph = tiny.run([tiny.node("Mul", *(reversed(pair) if swap else pair))], recognise_glu)
    assert tiny.ops(graph) == ["datong::glu"] and graph.node(0).inputs == (gate, up)


def test_a_silu_that_others_read_stays(tiny):
    gate = tiny.act(8)
    silu = tiny.node("Mul", gate, tiny.node("Sigmoid", gate))
    graph = tiny.run([tiny.node("Mul", silu, tiny.act(8)), tiny.node("Add", silu, gate)], recognise_glu)
    assert tiny.ops(graph) == ["Sigmoid", "Mul", "Mul", "Add"]


def test_other_products_stay(tiny):
    gate, other, up = tiny.act(8), tiny.act(8), tiny.act(8)
    sigmoid = tiny.node("Sigmoid", other)
    swish = tiny.node("Swish", gate, alpha=1.5)
    products = [tiny.node("Mul", tiny.node("Mul", gate, sigmoid), up), tiny.node("Mul", swish, up)]
    assert "datong::glu" not in tiny.ops(tiny.run(products, recognise_glu))


def test_widths_that_broadcast_stay(tiny):
    gate = tiny.act(8)
    silu = tiny.node("Mul", gate, tiny.node("Sigmoid", gate))
    assert "datong::glu" not in tiny.ops(tiny.run([tiny.node("Mul", silu, tiny.act(1))], recognise_glu))
