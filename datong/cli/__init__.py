"""The command line: one file per verb. Data goes to stdout, everything else to stderr."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Entry point of `datong`. Exit codes: 0 done, 1 a check failed, 2 the input was wrong, 130 interrupted."""
    from datong.cli.app import app
    from datong.cli.console import report_error
    from datong.errors import DatongError

    try:
        app()
    except DatongError as error:
        report_error(error)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # `datong … | head`: the reader has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
