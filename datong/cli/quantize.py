"""`datong quantize`: a package with 8- or 4-bit weights, and what that cost."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from datong.cli import options
from datong.cli.console import err, print_json, progress, show, warn

# To nearest, int8 loses nothing that can be measured, int4 twice what it loses by gptq (bench/results/quantise-*).
DEFAULTS = {"int4": "gptq"}


def quantize(
    source: options.Model,
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="New directory.", show_default=False)],
    weights: Annotated[str, typer.Option(metavar="TYPE", help="int8 or int4.", show_default=False)],
    method: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="rtn: to nearest, default for int8; gptq: calibrated, slower, for int4."),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Text to calibrate on; default: what the model itself writes."),
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Text to measure perplexity on; default: 1,200 tokens that come along."),
    ] = None,
    evaluate: Annotated[
        bool, typer.Option("--evaluate/--no-evaluate", help="Measure the perplexity before and after.")
    ] = True,
    requantize: Annotated[
        bool, typer.Option("--requantize", help="Round weights that are quantised already once more.")
    ] = False,
    threads: options.Threads = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a package that is already there.")] = False,
    as_json: options.Json = False,
) -> None:
    """Make a package with smaller weights.

    Matrices become blocks of 32 integers with an f16 scale: 8.5 bits per weight (int8) or 4.5 (int4). Embedding and
    output matrix are 8-bit in both; norms, biases, routers and other gates stay.
    """
    from datong.quantize.make import quantise
    from datong.quantize.report import compare, facts, words_of

    words = words_of(text)  # a mistake in it is found before the work
    with progress() as report:
        made = quantise(
            source,
            target,
            weights,
            method=method or DEFAULTS.get(weights, "rtn"),
            calibration=calibration,
            requantise=requantize,
            threads=threads,
            force=force,
            progress=report,
        )
        found = facts(made)
        if evaluate and made.package.tokenizer_file is not None:
            found |= compare(made, words, threads=threads, progress=report)
    if found["requantised_from"]:
        warn(f"weights were {', '.join(found['requantised_from'])} already: they are rounded twice now")
    if evaluate and "perplexity_before" not in found:
        warn("the package has no tokenizer, perplexity was not measured")
    if as_json:
        print_json(found)
        return
    _print(found)


def _print(found: dict[str, Any]) -> None:
    from rich.table import Table

    from datong.package.describe import size

    err.print(f"made {found['path']}", markup=False)
    table = Table("", "before", "after", "change", box=None, pad_edge=False)
    before, after = found["weight_bytes_before"], found["weight_bytes_after"]
    table.add_row("weights", size(before), size(after), f"x {after / before:.3f}")
    if "perplexity_before" in found:
        old, new = found["perplexity_before"], found["perplexity_after"]
        table.add_row("perplexity", f"{old:.3f}", f"{new:.3f}", f"{found['perplexity_change']:+.2%}")
    show(table)
    formats = ", ".join(f"{f['weights']} x {name}" for name, f in found["formats"].items())
    err.print(f"{found['bits_per_weight']:.2f} bits per weight: {formats}", style="dim", markup=False)
    for name, reason in found["kept"].items():
        err.print(f"kept as it is: {name}: {reason}", style="dim", markup=False)
