"""`datong import`: a checkpoint becomes a package."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from datong.cli import options
from datong.cli.console import err, print_json, progress
from datong.cli.inspect_ import print_facts


def import_(
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="A Hugging Face directory or a .gguf file.", show_default=False)
    ],
    target: Annotated[
        Path | None,
        typer.Argument(
            metavar="TARGET",
            help="New directory; default: in place for a directory, beside the file for a .gguf.",
            show_default=False,
        ),
    ] = None,
    hash_: Annotated[bool, typer.Option("--hash", help="Also hash the contents: reads every weight.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a package that is already there.")] = False,
    as_json: options.Json = False,
) -> None:
    """Turn a checkpoint into a package.

    In place, graph.onnx and datong.json are written beside the weights, and no weight is read.
    """
    from datong.package.create import import_checkpoint
    from datong.package.describe import describe

    start = time.perf_counter()
    with progress() as report:
        package = import_checkpoint(source, target, hash=hash_, force=force, progress=report)
    if as_json:
        print_json(describe(package))
        return
    err.print(f"imported into {package.root} in {time.perf_counter() - start:.1f} s", markup=False)
    print_facts(describe(package))
