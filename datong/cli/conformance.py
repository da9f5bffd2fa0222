"""`datong conformance`: does a backend compute what the operator set says?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from datong.cli import options
from datong.cli.console import print_json, show
from datong.errors import InvalidRequest

VendorWheel = Annotated[
    Path | None,
    typer.Option(
        "--vendor-wheel",
        help="Check our calls of fused operators against the schemas in a vendor's wheel instead; no device needed.",
        metavar="FILE",
    ),
]
OnnxSuite = Annotated[
    bool, typer.Option("--onnx-suite", help="Run the node tests of the ONNX backend test suite instead.")
]


def conformance(
    device: options.Device = "cpu",
    isa: options.Isa = None,
    onnx_suite: OnnxSuite = False,
    vendor_wheel: VendorWheel = None,
    as_json: options.Json = False,
) -> None:
    """Check a device against the operator definitions.

    Runs every case on the device and in NumPy; exit code 1 if one differs. With --onnx-suite the cases and answers are
    those of the package onnx, and what the operator set cannot express is counted as not claimed, with the reason.
    """
    if vendor_wheel is not None:
        _vendor(vendor_wheel, as_json)
        return
    from datong.backends.plugin import PluginBackend
    from datong.backends.registry import backend_for

    backend = backend_for(device)
    if isa and isinstance(backend, PluginBackend):
        backend.check_options({"isa": isa})  # a wrong name is one error, not one per case
    settings = {"isa": isa} if isa else {}
    if onnx_suite:
        from datong.conformance import onnx_suite_report
        from datong.conformance.onnx_suite import run_device

        found = run_device(device, settings)[1]
        facts, shown = onnx_suite_report.summary(found, backend), onnx_suite_report.table(found, backend)
    elif getattr(backend, "whole_models_only", False):
        raise InvalidRequest(
            "conformance",
            f"`{device}` runs whole models, no single operators",
            "use: --onnx-suite, which gives it graphs of its own",
        )
    else:
        from datong.conformance.ops import run_cases
        from datong.conformance.report import summary, table

        results = run_cases(backend, settings)
        facts, shown = summary(results, backend), table(results, backend)
    if as_json:
        print_json(facts)
    else:
        show(shown)
    if facts["failures"]:
        raise typer.Exit(1)


def _vendor(wheel: Path, as_json: bool) -> None:
    """Does every call fit the wheel?"""
    from datong.conformance.vendor import schemas

    found = schemas.check(wheel)
    if as_json:
        print_json(schemas.facts(found))
    else:
        show(schemas.text(found))
    if found.problems:
        raise typer.Exit(1)
