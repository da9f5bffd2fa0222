"""`datong verify`: is a package what it says it is?"""

from __future__ import annotations

from typing import Annotated

import typer

from datong.cli import options
from datong.cli.console import out, print_json, progress


def verify(
    package: options.PackageDir,
    device: options.Device = "cpu",
    goldens: Annotated[
        bool, typer.Option(help="Also run the golden vectors on --device, if the package is sealed.")
    ] = True,
    as_json: options.Json = False,
) -> None:
    """Check schema, paths, offsets, hashes, the graph and the golden vectors. Exit code 1 if any check fails."""
    from datong.package.reader import open_package
    from datong.package.verify import verify as check

    opened = open_package(package)
    logits = None
    if goldens and opened.manifest.goldens:
        from datong.engine.load import load

        logits = load(str(package), device=device).logits
    with progress() as report:
        result = check(opened, logits, progress=report)
    if as_json:
        print_json(result.as_dict())
    else:
        out.print(result.render())
    if not result.ok:
        raise typer.Exit(1)
