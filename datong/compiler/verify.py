"""Is what a pass left behind sound? Run after each pass with `verify=True` or DATONG_VERIFY=1, and always in tests.

graph:   one producer per value, producers before readers, names that do not clash, only stock and `datong` operators
draft:   the rules of spec/check.py
program: the rules of spec/check.py, slots that do not overlap, parts that read only what came before
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from datong.compiler import memory
from datong.compiler.draft import HIDDEN, STEP_INPUTS, Draft
from datong.errors import VerifyError
from datong.importer.functions import KNOWN
from datong.spec.check import check_part
from datong.spec.ops import OPS
from datong.spec.program import Part, Program

if TYPE_CHECKING:
    import onnx_ir as ir

DOMAIN = "datong"


def graph(model_graph: ir.Graph, after: str, lowered: bool = False) -> None:
    """Check an onnx_ir graph; `lowered`: stock operators are not allowed any more. Raises VerifyError."""
    known: set[ir.Value] = set(model_graph.inputs) | set(model_graph.initializers.values())
    names: set[str] = set()
    for node in model_graph:
        where = f"node `{node.name or node.op_type}`"
        known_function = node.op_type in KNOWN and not lowered
        if node.domain == DOMAIN and node.op_type not in OPS and not known_function:
            raise VerifyError(after, f"{where}: `{node.op_type}` should be an operator of the set, it is none")
        if lowered and node.domain != DOMAIN:
            raise VerifyError(after, f"{where}: no stock operator should be left, `{node.op_type}` is")
        for value in node.inputs:
            if value is not None and value not in known and value.meta.get("bound") is None:
                raise VerifyError(after, f"{where}: input `{value.name}` should be made before it, it is not")
        for value in node.outputs:
            if value in known or (value.name or "") in names:
                raise VerifyError(after, f"{where}: output `{value.name}` should have one producer, it has two")
            known.add(value)
            names.add(value.name or "")
        names.discard("")
    for value in model_graph.outputs:
        if value not in known:
            raise VerifyError(after, f"graph output `{value.name}` should be made by a node, it is not")


def draft(state: Draft, after: str) -> None:
    """Check a draft. Raises VerifyError."""
    try:
        check_part(state.as_part())
    except VerifyError as error:
        raise VerifyError(after, error.message, error.hint) from error


def program(compiled: Program) -> None:
    """Check the result. Raises VerifyError."""
    made: set[str] = {*STEP_INPUTS, HIDDEN}
    for part in compiled.parts:
        check_part(part)
        for name in part.inputs:
            if name not in made:
                raise VerifyError("verify", f"part for `{part.backend}` reads `{name}`, which no earlier part makes")
        made.update(part.outputs)
        slots(part)


def slots(part: Part) -> None:
    """No two values that live at the same time share a byte. Raises VerifyError."""
    lives = memory.lifetimes(part)
    for step in range(len(part.nodes)):
        alive = [name for name, life in lives.items() if life.first <= step <= life.last]
        spans = sorted((part.slots[n].arena, part.slots[n].offset, part.slots[n].size, n) for n in alive)
        for (arena, offset, size, name), (arena2, offset2, _, other) in itertools.pairwise(spans):
            if arena == arena2 and offset + size > offset2:
                raise VerifyError("memory", f"`{name}` and `{other}` overlap while node {step} runs")
