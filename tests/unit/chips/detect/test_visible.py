"""How a process counts devices under the variables that hide some."""

from __future__ import annotations

from pathlib import Path

import pytest

from datong.chips import load
from datong.chips.detect import Machine
from datong.chips.detect.visible import view


@pytest.mark.parametrize(
    ("text", "indices", "doubt"),
    [
        ("0,1,2,3", (0, 1, 2, 3), ""),
        ("2,0", (1, None, 0, None), ""),
        (" 3 ", (None, None, None, 0), ""),
        ("", (None,) * 4, ""),
        ("-1", (None,) * 4, ""),
        ("1,-1,2", (None, 0, None, None), ""),
        ("1,9,2", (None, 0, None, None), "names device 9, and 4 are in reach"),
        ("1,1", (None, 0, None, None), "names device 1 twice"),
        ("GPU-87ba9f62", (None,) * 4, "by other things than numbers"),
        ("0,", (None,) * 4, "by other things than numbers"),
        ("٣", (None,) * 4, "by other things than numbers"),
        ("9" * 5000, (None,) * 4, "by other things than numbers"),
    ],
)
def test_the_process_variable(text: str, indices: tuple[int | None, ...], doubt: str, tmp_path: Path) -> None:
    machine = Machine(tmp_path, {"MUSA_VISIBLE_DEVICES": text})
    seen = view(machine, load.stacks()["moorethreads"], 4)
    assert seen.indices == indices
    assert seen.reason is not None and seen.reason.saw == f"MUSA_VISIBLE_DEVICES={text}"
    assert len(seen.doubts) == bool(doubt) and doubt in "".join(seen.doubts)


def test_no_variable(tmp_path: Path) -> None:
    seen = view(Machine(tmp_path, {"CUDA_VISIBLE_DEVICES": "1"}), load.stacks()["moorethreads"], 2)
    assert (seen.indices, seen.reason, seen.doubts) == ((0, 1), None, ())


@pytest.mark.parametrize(("text", "said"), [("0,1", 0), ("all", 0), ("0-3", 0), ("0,1,2", 1), ("", 0)])
def test_the_container_variable(text: str, said: int, tmp_path: Path) -> None:
    machine = Machine(tmp_path, {"ASCEND_VISIBLE_DEVICES": text})
    assert len(view(machine, load.stacks()["ascend"], 2).doubts) == said
