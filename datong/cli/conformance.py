"""`datong conformance`: does a backend compute what the operator set says?"""

from __future__ import annotations

import typer

from datong.cli import options
from datong.cli.console import print_json, show


def conformance(device: options.Device = "cpu", isa: options.Isa = None, as_json: options.Json = False) -> None:
    """Check a device against the operator definitions.

    Runs every case on the device and in NumPy; exit code 1 if one differs.
    """
    from datong.backends.plugin import PluginBackend
    from datong.backends.registry import backend_for
    from datong.conformance.ops import run_cases
    from datong.conformance.report import summary, table

    backend = backend_for(device)
    if isa and isinstance(backend, PluginBackend):
        backend.check_options({"isa": isa})  # a wrong name is one error, not one per case
    results = run_cases(backend, {"isa": isa} if isa else {})
    facts = summary(results, backend)
    if as_json:
        print_json(facts)
    else:
        show(table(results, backend))
    if facts["failures"]:
        raise typer.Exit(1)
