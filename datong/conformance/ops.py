"""Levels 1 and 2: every operator of a backend against its definition, over the shapes of cases.toml.

    results = run_cases(backend, {"isa": "avx2"})        one CaseResult per case; nothing is skipped silently
    report.summary(results), report.table(results)

A case is a part of one node, run by the backend and by the reference, compared with the bound of tolerance.py. A
backend may refuse (with a reason: state `refused`); what it accepts it must get right.
"""

from __future__ import annotations

import itertools
import tomllib
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datong.backends.reference import ReferenceBackend
from datong.conformance.build import PartBuilder
from datong.conformance.parts import BUILDERS as PLAIN
from datong.conformance.parts import Scene
from datong.conformance.parts_latent import BUILDERS as LATENT
from datong.conformance.parts_sparse import BUILDERS as CHOOSING
from datong.conformance.parts_state import BUILDERS as STATEFUL
from datong.errors import DatongError
from datong.spec.backend import Backend, Cache, Executable, No
from datong.spec.ops import OPS
from datong.spec.program import Part
from datong.spec.tolerance import Report, compare

BUILDERS = {**PLAIN, **STATEFUL, **CHOOSING, **LATENT}


@dataclass(frozen=True)
class Case:
    """One operator with one set of shapes."""

    op: str
    params: Mapping[str, Any] = field(hash=False)

    @property
    def level(self) -> str:
        """L1 core operators, L2 fused ones."""
        return "L1" if OPS[self.op].tier == "core" else "L2"

    def __str__(self) -> str:
        return " ".join([self.op, *(f"{k}={_short(v)}" for k, v in self.params.items())])


@dataclass(frozen=True)
class CaseResult:
    """What came of a case. state: passed | failed (wrong, or an error) | refused."""

    case: Case
    state: str
    implementation: str = ""
    nmse: float = 0.0
    worst: float = 0.0
    reason: str = ""  # of a failure or refusal


def cases(select: Callable[[Case], bool] = lambda case: True) -> list[Case]:
    """The cases of cases.toml, in file order."""
    data = tomllib.loads(Path(__file__).with_name("cases.toml").read_text(encoding="utf-8"))
    return [case for case in _expand(data) if select(case)]


def _expand(data: Mapping[str, Any]) -> Iterator[Case]:
    for op, tables in data.items():
        for table in tables:
            for values in itertools.product(*table.values()):
                yield Case(op, dict(zip(table, values, strict=True)))


def _short(value: object) -> str:
    return "x".join(map(_short, value)) if isinstance(value, list) else str(value)


def run_cases(
    backend: Backend, options: Mapping[str, str] | None = None, selected: Iterable[Case] | None = None
) -> list[CaseResult]:
    """Run the cases (default: all) on a backend; `options` go to its `compile`."""
    return [run_case(backend, case, options) for case in (cases() if selected is None else selected)]


def run_case(backend: Backend, case: Case, options: Mapping[str, str] | None = None) -> CaseResult:
    """Run one case; an exception of the backend is a failure with its text."""
    if case.level == "L2" and case.op not in backend.fusions():
        return CaseResult(case, "refused", reason="the backend does not claim this fused operator")
    if getattr(backend, "whole_models_only", False):
        return CaseResult(case, "refused", reason="the backend runs whole models, no single operators")
    # the seed comes from the case alone, so that a case can be repeated by itself
    with PartBuilder(zlib.crc32(str(case).encode()), backend.name) as builder:
        scene = BUILDERS[case.op](builder, case.params)
        part = builder.part(builder.nodes[0].outputs)
        answer = backend.supports(part.nodes[0], part.values)
        if isinstance(answer, No):
            state = "refused" if answer.reason else "failed"
            return CaseResult(case, state, reason=answer.reason or "refused without a reason")
        try:
            executable = backend.compile(part, builder.package, options or {})
            implementation = executable.placement()[0].implementation
            reports = list(_compare(case, part, scene, executable, builder.package))
        except DatongError as error:
            return CaseResult(case, "failed", answer.implementation, float("inf"), float("inf"), str(error))
    bad = next((r.reason for r in reports if not r), "")
    nmse, worst = max(r.nmse for r in reports), max(r.worst for r in reports)
    return CaseResult(case, "failed" if bad else "passed", implementation, nmse, worst, bad)


def _compare(case: Case, part: Part, scene: Scene, executable: Executable, package: str) -> Iterator[Report]:
    """Play the scene on both sides; one report per step and output."""
    definition = ReferenceBackend.with_fusions().compile(part, package, {})
    cls, fmt = OPS[case.op].tolerance, str(case.params.get("format", ""))
    actual_cache = _cache(executable, scene) if part.caches else None
    if actual_cache is not None:
        fmt = actual_cache.layout.dtype  # the definition keeps f32, so the comparison shows what rounding costs
    expected_cache = _cache(definition, scene) if part.caches else None
    for actual, expected in zip(
        scene.play(executable, actual_cache), scene.play(definition, expected_cache), strict=True
    ):
        for name in part.outputs:
            yield compare(actual[name], expected[name], cls, fmt, magnitude=scene.magnitude.get(name))


def _cache(executable: Executable, scene: Scene) -> Cache:
    """A cache with as many blocks as the scene needs; an empty one tells the block size."""
    sizes = {"states": scene.states} if scene.stateful else {}
    empty = executable.create_cache(0, **sizes)
    blocks = scene.blocks(empty.layout.block_size)
    return executable.create_cache(blocks, **(sizes | {"window_blocks": blocks} if scene.apart(empty) else sizes))
