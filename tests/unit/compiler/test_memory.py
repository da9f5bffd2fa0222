from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datong.compiler import memory, verify
from datong.errors import VerifyError
from datong.spec.program import ROWS, TOKENS, Node, Part, Slot, Value


@st.composite
def parts(draw):
    """Random straight-line parts: any node reads any earlier values, of any width, in either arena."""
    values, nodes, names = {}, [], []
    for i in range(draw(st.integers(1, 25))):
        reads = tuple(draw(st.lists(st.sampled_from(names), max_size=3))) if names else ()
        made = []
        for k in range(draw(st.integers(1, 2))):
            name = f"v{i}_{k}"
            lead = draw(st.sampled_from([TOKENS, ROWS]))
            values[name] = Value(name, "temp", "f32", (lead, draw(st.sampled_from([1, 15, 16, 17, 64, 100, 4096]))))
            made.append(name)
        names += made
        nodes.append(Node("any", f"n{i}", reads, tuple(made)))
    outputs = tuple(draw(st.lists(st.sampled_from(names), min_size=1, max_size=3, unique=True)))
    return Part("b", values, tuple(nodes), (), outputs, ())


def overlapping(part: Part) -> list[tuple[str, str]]:
    """Pairs that share bytes while both live, found the slow way."""
    lives = {}
    for name in part.values:
        made = next(i for i, n in enumerate(part.nodes) if name in n.outputs)
        reads = [i for i, n in enumerate(part.nodes) if name in n.inputs]
        lives[name] = range(made, max([made, *reads]) + 1)
        if name in part.outputs:
            lives[name] = range(len(part.nodes))
    bad = []
    for a in part.values:
        for b in part.values:
            x, y = part.slots[a], part.slots[b]
            together = set(lives[a]) & set(lives[b])
            touch = x.arena == y.arena and x.offset < y.offset + y.size and y.offset < x.offset + x.size
            if a < b and together and touch:
                bad.append((a, b))
    return bad


@settings(max_examples=80, deadline=None)
@given(parts())
def test_values_that_live_together_do_not_overlap(part):
    planned = memory.plan(part)
    assert overlapping(planned) == []
    verify.slots(planned)
    for name, slot in planned.slots.items():
        value = part.values[name]
        assert slot.arena == value.shape[0] and slot.offset % memory.ALIGN == 0
        assert slot.size >= 4 * value.shape[1] and slot.size % memory.ALIGN == 0
        assert slot.offset + slot.size <= planned.arena_bytes[slot.arena]


@settings(max_examples=20, deadline=None)
@given(parts())
def test_the_plan_is_deterministic(part):
    assert memory.plan(part) == memory.plan(part)


def chain(sizes, outputs=1):
    values = {f"v{i}": Value(f"v{i}", "temp", "f32", (TOKENS, n)) for i, n in enumerate(sizes)}
    nodes = tuple(Node("any", f"n{i}", (f"v{i - 1}",) if i else (), (f"v{i}",)) for i in range(len(sizes)))
    return Part("b", values, nodes, (), tuple(f"v{len(sizes) - 1 - k}" for k in range(outputs)), ())


def test_space_is_used_again():
    planned = memory.plan(chain([16] * 50))
    assert planned.arena_bytes == {TOKENS: 3 * 64, ROWS: 0}  # two neighbours and the output


def test_outputs_share_with_nobody():
    planned = memory.plan(chain([16, 16, 16, 16], outputs=2))
    out = {planned.slots[n].offset for n in ("v2", "v3")}
    assert len(out) == 2 and not out & {planned.slots[n].offset for n in ("v0", "v1")}


def test_near_the_lower_bound_on_a_decoder():
    """30 layers: residual, norm, q k v, attention, o, sum, norm, gate up, down, sum."""
    values, nodes = {}, []

    def node(reads, width):
        name = f"v{len(values)}"
        values[name] = Value(name, "temp", "f32", (TOKENS, width))
        nodes.append(Node("any", f"n{len(nodes)}", tuple(reads), (name,)))
        return name

    x = node([], 576)
    for _ in range(30):
        h = node([x], 576)
        q, k, v = (node([h], w) for w in (576, 192, 192))
        x = node([x, node([node([q, k, v], 576)], 576)], 576)
        h = node([x], 576)
        x = node([x, node([node([node([h], 1536), node([h], 1536)], 1536)], 576)], 576)
    planned = memory.plan(Part("b", values, tuple(nodes), (), (x,), ()))
    lives = memory.lifetimes(planned)
    bound = max(
        sum(memory.size_of(values[n]) for n, life in lives.items() if life.first <= i <= life.last)
        for i in range(len(nodes))
    )
    assert bound <= planned.arena_bytes[TOKENS] <= 1.1 * bound


def test_the_check_can_fail():
    planned = memory.plan(chain([16, 16, 16]))
    broken = replace(planned, slots={**planned.slots, "v1": Slot(TOKENS, planned.slots["v0"].offset + 32, 64)})
    assert overlapping(broken)
    with pytest.raises(VerifyError, match="overlap while node 1 runs"):
        verify.slots(broken)
