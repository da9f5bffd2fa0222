"""Facts about a compiled program: which operators left the device that was asked first, and what crosses between parts.

Nothing is asked again: the program keeps every refusal of its nodes, and its parts name their inputs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from datong import dtypes
from datong.compiler.draft import STEP_INPUTS
from datong.spec.program import TOKENS, Program, Value


@dataclass(frozen=True)
class Fallback:
    """Nodes of one operator that `wanted` refused for one reason, and that run on `backend` instead."""

    op: str
    wanted: str
    backend: str
    reason: str
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class Transfer:
    """A value that one part makes and another reads: it goes through the host."""

    value: str
    source: str  # backend
    target: str
    bytes: int  # for each of `per`
    per: str  # token | row of logits


def fallbacks(program: Program) -> list[Fallback]:
    """Every node that its first backend refused, in groups, in order of execution."""
    refused: dict[str, tuple[str, str]] = {}
    for backend, name, reason in program.refusals:
        refused.setdefault(name, (backend, reason))
    groups: dict[tuple[str, str, str, str], list[str]] = {}
    for part in program.parts:
        for node in part.nodes:
            if node.name in refused and refused[node.name][0] != part.backend:  # else the note of a fusion
                wanted, reason = refused[node.name]
                groups.setdefault((node.op, wanted, part.backend, reason), []).append(node.name)
    return [Fallback(*key, tuple(nodes)) for key, nodes in groups.items()]


def fallback_sentence(program: Program) -> str:
    """`2 of 24 nodes run elsewhere than asked: glu x2 on reference (chip: no kernel); …`; empty if all run as asked."""
    found = fallbacks(program)
    if not found:
        return ""
    count, total = sum(len(f.nodes) for f in found), sum(len(part.nodes) for part in program.parts)
    groups = "; ".join(f"{f.op} x{len(f.nodes)} on {f.backend} ({f.wanted}: {f.reason})" for f in found)
    return f"{count} of {total} nodes run elsewhere than asked: {groups}"


def transfers(program: Program) -> list[Transfer]:
    """Every value that crosses into a part from an earlier one, in order."""
    makers: dict[str, str] = {}
    found: list[Transfer] = []
    for part in program.parts:
        for name in part.inputs:
            if name not in STEP_INPUTS:
                value = part.values[name]
                per = "token" if value.shape[0] == TOKENS else "row"
                found.append(Transfer(name, makers[name], part.backend, _bytes(value), per))
        makers.update(dict.fromkeys(part.outputs, part.backend))
    return found


def _bytes(value: Value) -> int:
    return dtypes.BY_NAME[value.dtype].nbytes(math.prod(d for d in value.shape[1:] if isinstance(d, int)))
