"""Which versions belong together."""

from __future__ import annotations

import pytest

from datong.chips import load
from datong.chips.detect import versions


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("2.10.0", (2, 10, 0)),
        ("2.10.0.post4", (2, 10, 0)),
        ("torch-npu 2.10.0+cpu", (2, 10, 0)),
        ("CANN 9.1.0", (9, 1, 0)),
        ("V5.2", (5, 2)),
        ("BIRENSUPA, version not named", ()),
        ("", ()),
        (None, ()),
    ],
)
def test_number(text: str | None, number: tuple[int, ...]) -> None:
    assert versions.number(text) == number


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("9.1", "9.1.0", True),
        ("2.10.0.post4", "2.10.0", True),
        ("1.0.0.21200", "1.0.0.21100", True),  # a build number is no version
        ("2.1.0", "2.10.0", False),
        ("", "1", False),
        (None, None, False),
    ],
)
def test_same(a: str | None, b: str | None, same: bool) -> None:
    assert versions.same(a, b) is same


@pytest.mark.parametrize(
    ("torch", "toolkit", "adapter"),
    [
        (None, None, "torch-npu 2.10.0.post4"),
        ("2.9.0", None, "torch-npu 2.9.0"),
        ("2.9.0", "9.0.0", "torch-npu 2.10.0"),
        ("2.10.0", "8.5.0", "torch-npu 2.9.0"),
        ("9.9.9", "9.1.0", "torch-npu 2.10.0.post4"),
    ],
)
def test_best_pair(torch: str | None, toolkit: str | None, adapter: str) -> None:
    pair = versions.best_pair(load.stacks()["ascend"], torch, toolkit)
    assert pair is not None and pair.adapter == adapter


def test_no_pairs() -> None:
    assert versions.best_pair(load.stacks()["kunlunxin"], "2.9.0", None) is None
