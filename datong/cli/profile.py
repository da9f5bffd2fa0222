"""`datong profile`: where the time of prefill and decode goes, by operator, against what the machine can do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from datong.cli import options
from datong.cli.console import err, print_json, show
from datong.errors import DatongError

if TYPE_CHECKING:
    from datong.engine.profile import Phase, Profile


def profile(
    model: options.Model,
    prefill: Annotated[int, typer.Option(metavar="N", min=1, help="Prompt length.")] = 512,
    decode: Annotated[int, typer.Option(metavar="N", min=1, help="Context to decode at.")] = 512,
    tokens: Annotated[int, typer.Option(metavar="N", min=2, help="Tokens to decode.")] = 32,
    sequences: Annotated[int, typer.Option(metavar="N", min=1, help="Sequences that decode at once.")] = 1,
    trace: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the last step of each as a Chrome or Perfetto trace.")
    ] = None,
    device: options.Device = "cpu",
    threads: options.Threads = None,
    isa: options.Isa = None,
    cache_dtype: options.CacheDtype = None,
    activations: options.Activations = None,
    context: options.Context = None,
    as_json: options.Json = False,
) -> None:
    """Time every operator of a prefill and of a decode.

    While nodes are timed all threads wait for each other after each of them, which costs a little: `datong bench` says
    how fast the model is, this says where the time goes.
    """
    from datong.cli.evidence import evidence
    from datong.cli.loading import open_model
    from datong.engine.profile import profile as run

    opened = open_model(
        model, device, threads=threads, isa=isa, cache_dtype=cache_dtype, activations=activations, context=context,
        text=False,
    )  # fmt: skip
    found = run(opened, prefill, decode, tokens, sequences, threads)
    if trace is not None:
        _write_trace(trace, found)
    if as_json:
        print_json({"model": opened.package.manifest.model.name, "device": device, "evidence": evidence(opened),
                    **_facts(found)})  # fmt: skip
        return
    for phase in found.phases:
        _show(phase, found)
    limits = found.limits
    err.print(
        f"limits measured now: {limits.bytes / 1e9:.1f} GB/s, {limits.int8 / 1e9:.0f} int8 GOP/s, "
        f"{limits.f32 / 1e9:.0f} f32 GOP/s; {evidence(opened)}",
        style="dim",
    )


def _write_trace(path: Path, found: Profile) -> None:
    events = [event for phase in found.phases for event in phase.events]
    data = json.dumps({"traceEvents": events, "displayTimeUnit": "ms"})
    partial = path.with_name(f"{path.name}.partial")
    try:
        partial.write_text(data)
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise DatongError("profile", f"`{path}` could not be written: {error.strerror or error}") from None


def _facts(found: Profile) -> dict[str, Any]:
    limits = found.limits
    return {
        "limits": {"bytes_per_second": limits.bytes, "int8_per_second": limits.int8, "f32_per_second": limits.f32},
        "phases": [
            {
                "phase": phase.name, "tokens": phase.tokens, "context": phase.context, "steps": phase.steps,
                "sequences": phase.sequences,
                "wall_seconds": phase.wall, "node_seconds": phase.seconds,
                "operators": [
                    {
                        "op": row.op, "size": row.size, "implementation": row.implementation, "nodes": row.nodes,
                        "seconds": row.seconds, "bytes": row.cost.bytes,
                        "operations": row.cost.integer + row.cost.real, "of_limit": row.share(limits),
                    }
                    for row in phase.rows
                ],
            }
            for phase in found.phases
        ],
    }  # fmt: skip


def _show(phase: Phase, found: Profile) -> None:
    from rich.table import Table

    many = f" of {phase.sequences} sequences" if phase.sequences > 1 else ""
    each = f"{1e3 * phase.wall / phase.steps:.2f} ms a step"
    title = f"{phase.name}{many}: {phase.tokens} tokens after {phase.context}, {each}"
    names = ("operator", "matrices", "nodes", "ms a step", "of time", "GB/s", "GOP/s", "of limit", "implementation")
    table = Table(*names, box=None, pad_edge=False, title=title, title_justify="left")
    for row in phase.rows:
        per = row.seconds or float("inf")
        share, operations = row.share(found.limits), row.cost.integer + row.cost.real
        table.add_row(
            row.op, row.size, str(row.nodes), f"{1e3 * row.seconds / phase.steps:.3f}",
            f"{row.seconds / phase.wall:.0%}", f"{row.cost.bytes / per / 1e9:.1f}" if row.cost.bytes else "",
            f"{operations / per / 1e9:.0f}" if operations else "",
            f"{share:.0%}" if share and row.cost.bytes + operations else "", row.implementation,
        )  # fmt: skip
    outside = phase.wall - phase.seconds
    cells = (f"{1e3 * outside / phase.steps:.3f}", f"{outside / phase.wall:.0%}")
    table.add_row("outside", "engine, sampling", "", *cells)
    show(table, "")
