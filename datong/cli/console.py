"""What people see: errors, progress bars, tables, JSON. Colour follows NO_COLOR and the terminal (rich)."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console

from datong.errors import DatongError

err = Console(stderr=True, highlight=False, soft_wrap=True)
out = Console(highlight=False, soft_wrap=True)

Progress = Callable[[str, int, int], None]


def report_error(error: DatongError) -> None:
    """`error: [where] sentence`, then the hint on a line of its own."""
    err.print("error:", style="bold red", end=" ")
    err.print(f"[{error.where}] {error.message}", markup=False)
    if error.hint:
        err.print("hint:", style="bold cyan", end=" ")
        err.print(error.hint, markup=False)


def print_json(data: Any) -> None:
    """One JSON document on stdout."""
    sys.stdout.write(json.dumps(data, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def progress() -> Iterator[Progress]:
    """A callback `(what, done, total)` that draws one bar per `what` on stderr; silent where stderr is no terminal."""
    if not err.is_terminal:
        yield lambda what, done, total: None
        return
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Bars(*columns, console=err, transient=True) as bars:
        tasks: dict[str, Any] = {}

        def update(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield update
