"""From the scheduler's choice to the arrays of a Step. The one place where sequences become NumPy."""

from __future__ import annotations

from collections.abc import Sequence as Items

import numpy as np

from datong.engine.scheduler import Work
from datong.engine.sequence import Sequence
from datong.spec.program import Step

_STARTS = np.array([0, 1], np.int64)  # of one sequence with one token
_ROW = np.zeros(1, np.int64)


def build(work: Items[Work]) -> Step:
    """The step that runs `work`; arrays as spec/program.py says. Does not change the sequences' tokens."""
    if len(work) == 1 and work[0].count == 1 and work[0].rows == 1:
        return _decode_one(work[0].sequence)
    counts = [w.count for w in work]
    starts = np.zeros(len(work) + 1, np.int64)
    np.cumsum(counts, out=starts[1:])
    ids = np.empty(int(starts[-1]), np.int64)
    positions = np.empty_like(ids)
    tables = [_table(w.sequence) for w in work]
    block_tables = np.full((len(work), max(map(len, tables))), -1, np.int32)
    rows: list[np.ndarray] = []
    for i, (w, table) in enumerate(zip(work, tables, strict=True)):
        first, start, end = w.sequence.computed, int(starts[i]), int(starts[i + 1])
        ids[start:end] = [*w.sequence.tokens[first : first + w.count - len(w.guesses)], *w.guesses]
        positions[start:end] = np.arange(first, first + w.count)
        block_tables[i, : len(table)] = table
        rows.append(np.arange(end - w.rows, end, dtype=np.int64))
    lens = np.array([w.sequence.computed + w.count for w in work], np.int64)
    step = Step(ids, positions, starts, lens, block_tables, np.concatenate(rows))
    if work[0].sequence.windows:
        step.window_tables = np.full_like(block_tables, -1)
        for i, w in enumerate(work):
            step.window_tables[i, : len(w.sequence.blocks)] = _window_table(w.sequence)
    if work[0].sequence.slot >= 0:
        step.state_slots = np.array([w.sequence.slot for w in work], np.int32)
    return step


def _decode_one(s: Sequence) -> Step:
    """One sequence, one token: the step that is built thousands of times."""
    position = s.computed
    return Step(
        np.array([s.tokens[position]], np.int64),
        np.array([position], np.int64),
        _STARTS,
        np.array([position + 1], np.int64),
        _table(s)[None],
        _ROW,
        _window_table(s)[None] if s.windows else None,
        np.array([s.slot], np.int32) if s.slot >= 0 else None,
    )


def _table(s: Sequence) -> np.ndarray:
    """Blocks of a sequence, [n] i32; made anew only when it grew (blocks are appended, or all dropped)."""
    table: np.ndarray | None = s.table
    if table is None or len(table) != len(s.blocks):
        old = 0 if table is None or len(table) > len(s.blocks) else len(table)
        made = np.empty(len(s.blocks), np.int32)
        if table is not None:
            made[:old] = table[:old]
        made[old:] = s.blocks[old:]
        s.table = table = made
    return table


def _window_table(s: Sequence) -> np.ndarray:
    """Window blocks of a sequence, [n] i32 as long as `_table`, -1 where it has none."""
    table: np.ndarray | None = s.window_table
    if table is None or len(table) != len(s.blocks):
        s.window_table = table = np.full(len(s.blocks), -1, np.int32)
        table[s.first_window : s.first_window + len(s.windows)] = s.windows
    return table
