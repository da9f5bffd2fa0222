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
    return Step(ids, positions, starts, lens, block_tables, np.concatenate(rows))


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
    )


def _table(s: Sequence) -> np.ndarray:
    """Blocks of a sequence, [n] i32; made anew only when it grew (blocks are appended, or all dropped)."""
    if s.table is None or len(s.table) != len(s.blocks):
        s.table = np.array(s.blocks, np.int32)
    table: np.ndarray = s.table
    return table
