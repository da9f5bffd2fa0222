"""The result of the op cases, for programs (`summary`) and for people (`table`)."""

from __future__ import annotations

import math
import platform
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

import datong
from datong.conformance.ops import CaseResult
from datong.spec.backend import API_VERSION, Backend
from datong.spec.ops import OPSET_VERSION

if TYPE_CHECKING:
    from rich.table import Table


def summary(results: Sequence[CaseResult], backend: Backend | None = None) -> dict[str, Any]:
    """Counts per level, the worst case per operator, each failure and each reason of a refusal; JSON-able."""
    levels = sorted({r.case.level for r in results})
    return {
        "datong": datong.__version__,
        "operator_set": OPSET_VERSION,
        "interface": ".".join(map(str, API_VERSION)),
        "machine": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "numpy": np.__version__,
        "backend": backend.name if backend else None,
        "devices": [{"name": d.name, "evidence": d.evidence} for d in backend.devices()] if backend else [],
        "levels": {level: _counts([r for r in results if r.case.level == level]) for level in levels},
        "operators": [_operator(op, [r for r in results if r.case.op == op]) for op in dict.fromkeys(_ops(results))],
        "failures": [{"case": str(r.case), "reason": r.reason} for r in results if r.state == "failed"],
    }


def _ops(results: Sequence[CaseResult]) -> list[str]:
    return [r.case.op for r in results]


def _counts(results: Sequence[CaseResult]) -> dict[str, int]:
    counted = Counter(r.state for r in results)
    return {state: counted[state] for state in ("passed", "failed", "refused")}


def _operator(op: str, results: Sequence[CaseResult]) -> dict[str, Any]:
    ran = [r for r in results if r.state != "refused"]
    worst = max(ran, key=lambda r: (r.nmse, r.worst), default=None)
    refusals = Counter(r.reason for r in results if r.state == "refused")
    return {
        "op": op,
        **_counts(results),
        "implementations": sorted({r.implementation for r in ran if r.implementation}),
        # JSON has no infinity: None stands for an output that could not be measured
        "nmse": worst.nmse if worst and math.isfinite(worst.nmse) else None,
        "worst": worst.worst if worst and math.isfinite(worst.worst) else None,
        "worst_case": str(worst.case) if worst else None,
        "refusals": dict(refusals),
    }


def table(results: Sequence[CaseResult], backend: Backend | None = None) -> Table:
    """One line per operator, as a rich table."""
    from rich.table import Table

    made = Table("operator", "passed", "failed", "refused", "nmse", "worst", "worst case or reason", box=None)
    for row in summary(results, backend)["operators"]:
        failure = next((r for r in results if r.state == "failed" and r.case.op == row["op"]), None)
        note = (f"{failure.case}: {failure.reason}" if failure else row["worst_case"]) or "; ".join(row["refusals"])
        numbers = ("-" if row[key] is None else f"{row[key]:.1e}" for key in ("nmse", "worst"))
        made.add_row(row["op"], *(str(row[state]) for state in ("passed", "failed", "refused")), *numbers, note)
    return made
