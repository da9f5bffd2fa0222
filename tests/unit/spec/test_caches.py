"""Caches by kind: which a node asks for, what they cost, what a step must say of them."""

from typing import Any

import numpy as np
import pytest

from datong.dtypes import BF16, F32
from datong.errors import DatongError, DeviceError, DtypeError, ShapeError
from datong.spec.caches import KINDS, cache_bytes, caches_of, check_step, layout, limits, numbers, state_bytes, tables
from datong.spec.program import STATE_KINDS, TOKENS, CacheSpec, Node, Step, Value

FULL, WINDOW = CacheSpec(0, "full", 2, 4, 6), CacheSpec(1, "window", 2, 4, 4, 16)
LATENT, INDEX = CacheSpec(2, "latent", 1, 9, 5), CacheSpec(2, "index", 1, 3, 0)
RECURRENT, CONV = CacheSpec(3, "recurrent", 2, 3, 4), CacheSpec(3, "conv", 1, 8, 3)
ALL = (FULL, WINDOW, LATENT, INDEX, RECURRENT, CONV)


def node(op: str, widths: dict[str, tuple[int | str, ...]], **attrs: Any) -> tuple[CacheSpec, ...]:
    values = {name: Value(name, "temp", "f32", shape) for name, shape in widths.items()}
    return caches_of(Node(op, op, tuple(widths), ("y",), {"layer": 7, **attrs}), values)


def test_a_node_asks_for_its_caches() -> None:
    t = TOKENS
    qkv: dict[str, tuple[int | str, ...]] = {"q": (t, 32), "k": (t, 16), "v": (t, 12)}
    heads = {"num_heads": 4, "num_kv_heads": 2}
    assert node("attention", qkv, window=0, **heads) == (CacheSpec(7, "full", 2, 8, 6),)
    assert node("attention", qkv, window=9, **heads) == (CacheSpec(7, "window", 2, 8, 6, 9),)
    assert node("causal_conv", {"x": (t, 10), "w": (10, 4)}) == (CacheSpec(7, "conv", 1, 10, 3),)
    delta: dict[str, tuple[int | str, ...]] = {"q": (t, 16), "k": (t, 16), "v": (t, 20)}
    assert node("gated_delta", delta, num_k_heads=2, num_v_heads=4) == (CacheSpec(7, "recurrent", 4, 8, 5),)
    assert node("linear_attention", qkv, num_heads=2) == (CacheSpec(7, "recurrent", 2, 8, 6),)
    assert node("rms_norm", qkv) == ()


def test_what_is_kept() -> None:
    assert {spec.kind for spec in ALL} == set(KINDS) and set(KINDS) > STATE_KINDS
    assert [numbers(spec) for spec in ALL] == [20, 16, 9, 3, 24, 24]
    assert state_bytes(ALL) == 4 * 48
    found = layout(ALL, BF16, 16)  # states are f32, whatever the others are
    assert (found.bytes_per_block, found.bytes_per_window_block, found.bytes_per_state) == (
        2 * 16 * 32,
        2 * 16 * 16,
        192,
    )
    assert cache_bytes(found, 10, 3, 2) == 10 * 1024 + 3 * 512 + 2 * 192
    assert cache_bytes(layout((WINDOW,), F32, 16), 10) == 10 * 1024  # windows that share the blocks


def step(**changes: Any) -> Step:
    """Two sequences of 33 and 3 tokens, one and three of them new."""
    fields: dict[str, Any] = {
        "ids": np.zeros(4, np.int64),
        "positions": np.array([32, 0, 1, 2]),
        "query_starts": np.array([0, 1, 4]),
        "context_lens": np.array([33, 3]),
        "block_tables": np.array([[4, 0, 2], [1, -1, -1]], np.int32),
        "rows": np.zeros(0, np.int64),
        "window_tables": np.array([[-1, 2, 0], [1, -1, -1]], np.int32),
        "state_slots": np.array([1, 0], np.int32),
    }
    return Step(**(fields | changes))


def test_a_window_may_have_left_its_oldest_blocks() -> None:
    check_step(step(), **limits(ALL, 16, 5, 3, 2))
    check_step(step(block_tables=step().window_tables), **limits((WINDOW,), 16, 5))  # they share the blocks
    check_step(step(block_tables=np.full((2, 0), -1, np.int32)), **limits((WINDOW, CONV), 16, 0, 3, 2))
    now = step()
    assert tables(now, WINDOW) is now.window_tables and tables(now, LATENT) is now.block_tables
    assert tables(step(window_tables=None), WINDOW).tolist() == now.block_tables.tolist()


BROKEN: list[tuple[type[DatongError], str, dict[str, Any]]] = [
    (ShapeError, "`window_tables` should be given", {"window_tables": None}),
    (ShapeError, "`state_slots` should be given", {"state_slots": None}),
    (DtypeError, "`state_slots` should be int32, is int64", {"state_slots": np.array([1, 0])}),
    (ShapeError, "`state_slots` should be [2], is [1]", {"state_slots": np.array([1], np.int32)}),
    (DeviceError, "`state_slots` should lie in 0..1", {"state_slots": np.array([1, 2], np.int32)}),
    (DeviceError, "`state_slots` should differ", {"state_slots": np.array([1, 1], np.int32)}),
    (DeviceError, "window table of sequence 0 should lie in 0..2, is [3, 0]",
     {"window_tables": np.array([[-1, 3, 0], [1, -1, -1]], np.int32)}),
    (DeviceError, "window table of sequence 0 should lie in 0..2, is [-1, 0]",
     {"window_tables": np.array([[1, -1, 0], [1, -1, -1]], np.int32)}),
    (ShapeError, "sequence 0 of 33 tokens needs more than 1 window blocks",
     {"window_tables": np.array([[-1, 2], [1, -1]], np.int32)}),
    (DeviceError, "block table of sequence 0", {"block_tables": np.array([[-1, 0, 2], [1, -1, -1]], np.int32)}),
]  # fmt: skip


@pytest.mark.parametrize(("error", "text", "changes"), BROKEN, ids=[row[1] for row in BROKEN])
def test_a_step_that_does_not_fit_the_caches_is_refused(
    error: type[DatongError], text: str, changes: dict[str, Any]
) -> None:
    with pytest.raises(error) as caught:
        check_step(step(**changes), **limits(ALL, 16, 5, 3, 2))
    assert text in caught.value.message
