"""`datong verify`: is a package what it says it is?"""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

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
    if goldens and opened.manifest.golden:
        from datong.engine.load import load

        logits = load(str(package), device=device).logits
    with progress() as report:
        result = check(opened, logits, progress=report)
    if as_json:
        print_json(result.as_dict())
    else:
        from rich.table import Table

        table = Table("check", "result", "detail", box=None, pad_edge=False)
        for row in result.checks:
            colour = {"ok": "green", "skipped": "yellow", "failed": "red"}[row.status]
            table.add_row(row.name, f"[{colour}]{row.status}[/]", escape(row.reason))
            if row.hint:
                table.add_row("", "", f"hint: {escape(row.hint)}")
        out.print(table)
    if not result.ok:
        raise typer.Exit(1)
