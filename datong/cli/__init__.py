"""The command line: one file per verb. Data goes to stdout, everything else to stderr."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Entry point of `datong`.

    Exit codes: 0 done, 1 a check failed or nobody reads the output any more, 2 the input was wrong, 130 interrupted.
    """
    try:
        _run()
    except KeyboardInterrupt:  # outside of the verbs, which typer guards: while modules are loaded
        sys.exit(130)


def _run() -> None:
    from datong.cli.app import app
    from datong.cli.console import OutputError, report_error
    from datong.errors import DatongError

    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by the shell: `datong … >&-`
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115  # for the whole run
    # Text that the terminal's encoding has no sign for is shown as `?`, and bytes that are no text reach our own check.
    for stream, errors in ((sys.stdout, "replace"), (sys.stdin, "surrogateescape")):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=errors)
    try:
        app(prog_name="datong")
    except OutputError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is still buffered cannot be written either
        report_error(error)
        sys.exit(2)
    except DatongError as error:
        report_error(error)
        sys.exit(2)
