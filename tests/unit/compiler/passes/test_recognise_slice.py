import pytest

from datong.compiler import match
from datong.compiler.passes import recognise_slice


def cut(tiny, x, start, end, axis=-1):
    return tiny.node("Slice", x, tiny.const([start]), tiny.const([end]), tiny.const([axis]))


def test_whole_width(tiny):
    x = tiny.act(12)
    graph = tiny.run([cut(tiny, x, 4, 10)], recognise_slice)
    node = tiny.only(graph, "slice")
    assert node.inputs == (x,) and tiny.attrs(node) == {"group": 12, "start": 4, "length": 6}


def test_inside_groups_with_a_shared_first_reshape(tiny):
    x = tiny.act(24)
    groups = tiny.reshape(x, 0, 0, 2, 12)
    outs = [tiny.reshape(cut(tiny, groups, a, b), 0, 0, -1) for a, b in ((0, 8), (8, 10), (-2, 2**60))]
    graph = tiny.run(outs, recognise_slice)
    assert tiny.ops(graph) == ["datong::slice"] * 3
    assert [tiny.attrs(n) for n in graph] == [
        {"group": 12, "start": 0, "length": 8},
        {"group": 12, "start": 8, "length": 2},
        {"group": 12, "start": 10, "length": 2},
    ]
    assert [match.dims(n.outputs[0])[-1] for n in graph] == [16, 4, 4]


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda t: cut(t, t.act(8), 0, 1, 1), "one axis of known size"),
        (lambda t: cut(t, t.reshape(t.act(24), 0, 0, 2, 12), 0, 1, 2), "only the last axis"),
        (lambda t: t.reshape(cut(t, t.reshape(t.act(24), 0, 0, 2, 12), 0, 6), 0, 0, 3, 4), "join the groups"),
        (lambda t: cut(t, t.reshape(t.act(24), 0, 0, 2, 12), 0, 6), "one back"),
        (lambda t: t.node("Slice", t.act(8), t.const([0]), t.const([8]), t.const([2]), t.const([2])), "step 1"),
    ],
)
def test_other_cuts_are_noted(tiny, build, text):
    graph = tiny.run([build(tiny)], recognise_slice)
    assert text in tiny.why(graph, "Slice")
