"""`check(path)`: does every fused call of ours fit the vendor's wheel?

It runs in a process of its own, because schemas stay registered in PyTorch for good.

    found = check(Path("build/vendor/torch_npu-2.13.0-….whl"))
    found.problems                 sentences; empty: every call fits
    found.calls                    by operator: how often it was called, in which ways
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datong.errors import ChipError

DIRECTORY = Path("build") / "vendor"  # where scripts/fetch-vendor-wheels puts them


@dataclass(frozen=True)
class Found:
    """What the check found."""

    package: str
    version: str
    stack: str
    registered: int  # schemas in the wheel
    calls: Mapping[str, Mapping[str, Any]]  # our name of the operator -> calls, forms (lists of argument names)
    problems: Sequence[str]
    without_meta: Sequence[str] = ()  # operators for which the wheel has no meta function


def check(path: Path, ops: Sequence[str] = ()) -> Found:
    """Check one wheel; `ops`: only calls for these operators of ours.

    Raises ChipError when the wheel cannot be read, or no chip's descriptor names its package.
    """
    command = [sys.executable, "-m", "datong.conformance.vendor.dry_run", str(path), *ops]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        answer = json.loads(result.stdout)
    except json.JSONDecodeError as error:
        lines = result.stderr.strip().splitlines() or ["no output"]
        raise ChipError(path.name, f"the check should run to its end, it stopped: {lines[-1]}") from error
    if "error" in answer:
        raise ChipError(path.name, answer["error"], answer["hint"])
    return Found(**answer)


def facts(found: Found) -> dict[str, Any]:
    """For `--json`."""
    return {
        "package": found.package,
        "version": found.version,
        "stack": found.stack,
        "registered": found.registered,
        "calls": {name: dict(call) for name, call in found.calls.items()},
        "failures": list(found.problems),
    }


def text(found: Found) -> str:
    """For people."""
    lines = [f"{found.package} {found.version}: {found.registered} operators registered", ""]
    for name, call in sorted(found.calls.items()):
        meta = ", results not checked: the wheel has no meta function" if name in found.without_meta else ""
        lines.append(f"  {name}, called {call['calls']} times{meta}")
        lines += [f"      ({', '.join(form)})" for form in call["forms"]]
    lines += ["", f"{len(found.problems)} calls or schemas do not fit:" if found.problems else "every call fits"]
    return "\n".join([*lines, *(f"  {problem}" for problem in found.problems)])
