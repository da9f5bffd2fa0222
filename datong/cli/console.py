"""What people see: errors, progress bars, tables, JSON. Colour follows NO_COLOR and the terminal (rich)."""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, RenderableType

from datong.errors import DatongError

err = Console(stderr=True, highlight=False, soft_wrap=True)
_out = Console(highlight=False, soft_wrap=True)

Progress = Callable[[str, int, int], None]

# Control characters of an answer would be orders to the terminal: they are shown as signs (U+2400 …) instead.
_SIGNS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {127: 0x2421}
_SIGNS |= dict.fromkeys(range(0x80, 0xA0), 0xFFFD)


class OutputError(DatongError):
    """stdout cannot be written: its disk is full."""


def report_error(error: DatongError) -> None:
    """`error: [where] sentence`, then the hint on a line of its own."""
    err.print("error:", style="bold red", end=" ")
    err.print(f"[{error.where}] {error.message}", markup=False)
    if error.hint:
        err.print("hint:", style="bold cyan", end=" ")
        err.print(error.hint, markup=False)


def warn(text: str) -> None:
    """`warning: …`, on stderr."""
    err.print("warning:", style="yellow", end=" ")
    err.print(text, markup=False)


def write(text: str) -> None:
    """Text on stdout, at once. On a terminal without the control characters that would command it."""
    with _writing():
        sys.stdout.write(text.translate(_SIGNS) if sys.stdout.isatty() else text)
        sys.stdout.flush()


def show(*what: RenderableType) -> None:
    """Tables and lines on stdout."""
    with _writing():
        _out.print(*what)
        sys.stdout.flush()


def print_json(data: Any) -> None:
    """One JSON document on stdout."""
    with _writing():
        sys.stdout.write(json.dumps(data, indent=2, ensure_ascii=False) + "\n")
        sys.stdout.flush()


@contextmanager
def _writing() -> Iterator[None]:
    """A full disk becomes an OutputError; a closed pipe is typer's business."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.EPIPE:
            raise
        raise OutputError("output", f"stdout could not be written: {error.strerror or error}") from None


@contextmanager
def progress(waiting: str | None = None) -> Iterator[Progress]:
    """A callback `(what, done, total)` that draws one bar per `what` on stderr; silent where stderr is no terminal.

    `waiting` names what else may take a moment (compiling): a bar without an end, as long as nothing else is told.
    """
    if not err.is_terminal:
        yield lambda what, done, total: None
        return
    from rich.filesize import decimal
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[amount]}"), TimeElapsedColumn())
    with Bars(*columns, console=err, transient=True) as bars:
        tasks: dict[str, Any] = {}
        if waiting:
            bars.add_task(waiting, total=None, amount="")

        def update(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total, amount="")
            in_bytes = total > 100_000  # else a count: of shards, of tensors
            amount = f"{decimal(done)} of {decimal(total)}" if in_bytes else f"{done} of {total}"
            bars.update(tasks[what], completed=done, total=total, amount=amount)

        yield update
