"""`datong verify`: is a package what it says it is?"""

from __future__ import annotations

from typing import Annotated

import typer

from datong.cli import options
from datong.cli.console import err, print_json, progress, show


def verify(
    package: options.PackageDir,
    device: options.Device = "cpu",
    goldens: Annotated[
        bool, typer.Option(help="Also run the golden vectors on --device, if the package is sealed.")
    ] = True,
    deep: Annotated[bool, typer.Option("--deep", help="Also read all weights: NaN and infinities fail.")] = False,
    as_json: options.Json = False,
) -> None:
    """Check that a package is what it says it is.

    Schema, paths, offsets, hashes, the graph and the golden vectors; exit code 1 if a check fails.
    """
    from datong.package.reader import open_package
    from datong.package.verify import verify as check

    opened = open_package(package)
    logits = None
    if goldens and opened.manifest.goldens:
        from datong.engine.load import load

        logits = load(str(package), device=device).logits
    with progress() as report:
        result = check(opened, logits, progress=report, deep=deep)
    if as_json:
        print_json(result.as_dict())
    else:
        show(result.render())
    if not result.ok:
        failed = [check.name for check in result.checks if check.status == "failed"]
        err.print(f"{len(failed)} of {len(result.checks)} checks failed: {', '.join(failed)}", markup=False)
        raise typer.Exit(1)
