import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from datong.backends.torch.graphs import bucket, can_capture, is_decode, pad_decode
from datong.backends.torch.target import Target
from datong.spec.program import Step


def decode(lens: list[int], tables: list[list[int]]) -> Step:
    count = len(lens)
    return Step(
        np.arange(count) + 7,
        np.array(lens) - 1,
        np.arange(count + 1),
        np.array(lens),
        np.array(tables, np.int32),
        np.arange(count),
    )


def scratch() -> Any:
    return SimpleNamespace(scratch=99, window_scratch=98, state_scratch=97)


@pytest.mark.parametrize(("count", "want"), [(1, 1), (2, 2), (3, 4), (5, 8), (8, 8), (33, 64)])
def test_buckets_are_powers_of_two(count: int, want: int) -> None:
    assert bucket(count) == want


def test_padding_sequences_live_in_the_scratch_block() -> None:
    own = decode([40, 3, 17], [[4, 5, 6], [1, -1, -1], [2, 3, -1]])
    own.window_tables, own.state_slots = own.block_tables + 10, np.array([2, 0, 1], np.int32)
    padded = pad_decode(own, scratch())
    assert padded.ids.tolist() == [7, 8, 9, 0] and padded.context_lens.tolist() == [40, 3, 17, 1]
    assert padded.query_starts.tolist() == [0, 1, 2, 3, 4] and padded.rows.tolist() == [0, 1, 2, 0]
    assert padded.block_tables.shape == (4, 4) and padded.block_tables[3].tolist() == [99] * 4
    assert padded.block_tables[0].tolist() == [4, 5, 6, 99]
    assert padded.window_tables is not None and padded.window_tables[1:].tolist() == [
        [11, 9, 9, 98],
        [12, 13, 9, 98],
        [98] * 4,
    ]
    assert padded.state_slots is not None and padded.state_slots.tolist() == [2, 0, 1, 97]


def test_a_step_that_fits_is_not_changed() -> None:
    own = decode([4, 5], [[1], [2]])
    padded = pad_decode(own, scratch())
    assert all(np.array_equal(getattr(own, name), getattr(padded, name)) for name in vars(own))


def test_is_decode() -> None:
    assert is_decode(decode([4, 5], [[1], [2]]))
    own = decode([4, 5], [[1], [2]])
    own.query_starts, own.context_lens = np.array([0, 2]), np.array([5])
    assert not is_decode(own)
    own.query_starts, own.context_lens = np.array([0, 0, 2]), np.array([0, 5])
    assert not is_decode(own)


def test_capture_needs_class_and_context(monkeypatch: pytest.MonkeyPatch) -> None:
    target = Target("x", "chip:0", "chip", "not run", graph="chip.Graph")
    assert not can_capture(target)
    monkeypatch.setitem(sys.modules, "chip", ModuleType("chip"))
    monkeypatch.setattr(sys.modules["chip"], "Graph", SimpleNamespace, raising=False)
    assert not can_capture(target)
    monkeypatch.setattr(sys.modules["chip"], "graph", SimpleNamespace, raising=False)
    assert can_capture(target)
