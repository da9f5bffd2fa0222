"""`datong conformance`: does a backend compute what the operator set says?"""

from __future__ import annotations

import typer

from datong.cli import options
from datong.cli.console import out, print_json


def conformance(device: options.Device = "cpu", isa: options.Isa = None, as_json: options.Json = False) -> None:
    """Run the operator cases on a device against the NumPy definitions. Exit code 1 if a case fails."""
    from datong.backends.registry import backend_for
    from datong.conformance.ops import run_cases
    from datong.conformance.report import summary, table

    backend = backend_for(device)
    results = run_cases(backend, {"isa": isa} if isa else {})
    facts = summary(results, backend)
    if as_json:
        print_json(facts)
    else:
        out.print(table(results, backend))
    if facts["failures"]:
        raise typer.Exit(1)
