"""Bytes are counted exactly, and freed with their last tensor."""

import pytest

from datong.backends.sim.memory import Meter, Pool
from datong.backends.sim.rules import Rules
from datong.chips.load import find
from datong.errors import RuleBroken


def meter(total: int) -> Meter:
    return Meter(Rules("sim:x", find("ascend-910b")), total)


def test_fills_up_to_the_last_byte() -> None:
    m = meter(100)
    first = m.take("aten::empty", 60)
    second = m.take("aten::empty", 40)
    with pytest.raises(RuleBroken, match="it wants 1 bytes, 100 are in use, 1 too many"):
        m.take("aten::empty", 1)
    assert m.used == 100
    del second
    assert (m.used, m.peak) == (60, 100)
    assert m.take("aten::empty", 40).size == 40
    del first
    assert m.used == 0


def test_no_limit_where_nobody_knows_one() -> None:
    m = meter(0)
    held = m.take("aten::empty", 2**60)
    assert m.used == held.size


def test_a_graph_keeps_the_most_that_was_live_within_it() -> None:
    m = meter(100)
    pool = m.pool = Pool()
    held = m.take("a", 30)
    del held
    held = m.take("b", 20)
    more = m.take("c", 25)
    m.pool = None
    assert (pool.peak, m.used) == (45, 45)
    del held, more
    assert m.used == 45
    outside = m.take("d", 55)
    with pytest.raises(RuleBroken):
        m.take("e", 1)
    m.free(pool)
    m.free(pool)
    assert m.used == outside.size


def test_a_graph_that_does_not_fit() -> None:
    m = meter(100)
    before = m.take("a", 70)
    m.pool = Pool()
    held = m.take("b", 30)
    with pytest.raises(RuleBroken, match="it wants 1 bytes, 100 are in use"):
        m.take("c", 1)
    del held
    assert m.take("d", 30).size + before.size == 100  # the pool's memory is used again
