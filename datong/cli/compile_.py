"""`datong compile`: a package becomes a program for a device; shows what runs where, and every refusal."""

from __future__ import annotations

from typing import Annotated

import typer

from datong.cli import options
from datong.cli.console import err, print_json, progress, warn, write


def compile_(
    model: options.Model,
    device: options.Device = "cpu",
    split: options.Split = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Print placement and refusals with their reasons.")
    ] = False,
    strict: options.Strict = False,
    as_json: options.Json = False,
) -> None:
    """Compile for a device, without running.

    --explain says which implementation runs each operator, or why none does.
    """
    from datong.compiler.explain import explain as text
    from datong.compiler.explain import explain_data, explain_unsupported
    from datong.compiler.pipeline import compile_package
    from datong.compiler.placement import fallback_sentence
    from datong.engine.devices import open_devices
    from datong.errors import Unsupported
    from datong.package.store import resolve

    with progress() as report:
        package = resolve(model, report)
    devices = open_devices(device, split, strict=strict)
    try:
        program = compile_package(package, devices.backends, splits=devices.splits, strict=strict)
    except Unsupported as error:
        if explain:
            write(explain_unsupported(error))
        raise
    if as_json:
        print_json(explain_data(program, devices.backends))
    elif explain:
        write(text(program, devices.backends))
    else:
        nodes = sum(len(part.nodes) for part in program.parts)
        if sentence := fallback_sentence(program):
            warn(f"{sentence}; --strict refuses that")
        err.print(f"compiled {package.root}: {nodes} nodes in {len(program.parts)} part(s)", markup=False)
