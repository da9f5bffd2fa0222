"""Lifetimes -> places: every temp of a part gets a slot in the arena of its leading dim, and slots are used again.

    address of a value = slot.offset * capacity        capacity: the largest T (or R) that the backend prepared for
    bytes per leading unit, each size padded to ALIGN, so that every address is a multiple of ALIGN

A node's outputs never overlap its inputs: kernels need not work in place. Outputs of a part share with nobody: the
caller reads them after the last node. Largest first, each at the lowest offset that is free during its whole life;
decoder graphs repeat, and this is within a few percent of the lower bound (tests/unit/compiler/test_memory.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from datong import dtypes
from datong.spec.program import ROWS, TOKENS, Part, Slot, Value

ALIGN = 64  # bytes: a cache line, and the width of an AVX-512 register


@dataclass(frozen=True)
class Life:
    """First and last node, inclusive, during which a value must stay where it is."""

    first: int
    last: int


def lifetimes(part: Part) -> dict[str, Life]:
    """Of every value that a node of the part makes."""
    lives: dict[str, Life] = {}
    for i, node in enumerate(part.nodes):
        for name in node.inputs:
            if name in lives:
                lives[name] = replace(lives[name], last=i)
        for name in node.outputs:
            lives[name] = Life(i, i)
    return lives | dict.fromkeys(part.outputs, Life(0, max(len(part.nodes) - 1, 0)))


def size_of(value: Value) -> int:
    """Bytes per leading unit, padded to ALIGN."""
    elements = math.prod(d for d in value.shape[1:] if isinstance(d, int))
    return -(-dtypes.BY_NAME[value.dtype].nbytes(elements) // ALIGN) * ALIGN


def plan(part: Part) -> Part:
    """The part with `slots` and `arena_bytes`."""
    lives = lifetimes(part)
    slots: dict[str, Slot] = {}
    arenas: dict[str, int] = {}
    for arena in (TOKENS, ROWS):
        mine = {name: life for name, life in lives.items() if part.values[name].shape[0] == arena}
        placed = _place(mine, part.values, len(part.nodes))
        slots |= {name: Slot(arena, offset, size_of(part.values[name])) for name, offset in placed.items()}
        arenas[arena] = max((slots[name].offset + slots[name].size for name in mine), default=0)
    return replace(part, slots={name: slots[name] for name in lives}, arena_bytes=arenas)


def _place(lives: Mapping[str, Life], values: Mapping[str, Value], steps: int) -> dict[str, int]:
    """Offsets of the values of one arena."""
    busy: list[list[tuple[int, int]]] = [[] for _ in range(steps)]  # per node: (offset, end) of what lives there
    offsets: dict[str, int] = {}
    for name in sorted(lives, key=lambda n: (-size_of(values[n]), lives[n].first, n)):
        life, size = lives[name], size_of(values[name])
        taken = sorted({span for step in range(life.first, life.last + 1) for span in busy[step]})
        offset = 0
        for start, end in taken:
            if offset + size <= start:
                break
            offset = max(offset, end)
        offsets[name] = offset
        for step in range(life.first, life.last + 1):
            busy[step].append((offset, offset + size))
    return offsets
