"""`datong bench`: how fast one package prefills and decodes here. Side by side with peers: bench/compare.py."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from datong.cli import options
from datong.cli.console import err, print_json, show
from datong.errors import InvalidRequest

if TYPE_CHECKING:
    from datong.engine.model import Model


def bench(
    model: options.Model,
    prefill: Annotated[
        list[int] | None, typer.Option(metavar="N", min=1, help="Prompt length; several times; default 128 and 512.")
    ] = None,
    decode: Annotated[
        list[int] | None, typer.Option(metavar="N", min=1, help="Context to decode at; several; default 16 and 512.")
    ] = None,
    tokens: Annotated[int, typer.Option(metavar="N", min=2, help="Tokens to decode in each run.")] = 64,
    runs: Annotated[int, typer.Option(metavar="N", min=1, help="Runs of each, after one warm-up.")] = 5,
    device: options.Device = "cpu",
    split: options.Split = None,
    threads: options.Threads = None,
    isa: options.Isa = None,
    cache_dtype: options.CacheDtype = None,
    activations: options.Activations = None,
    own: options.Own = None,
    context: options.Context = None,
    strict: options.Strict = False,
    as_json: options.Json = False,
) -> None:
    """Measure tokens per second: median, least, most."""
    from datong.cli.evidence import evidence
    from datong.cli.loading import open_model

    opened = open_model(
        model,
        device,
        split=split,
        threads=threads,
        isa=isa,
        cache_dtype=cache_dtype,
        activations=activations,
        own=own,
        context=context,
        strict=strict,
        text=False,
    )
    room = opened.context - tokens
    for length in (*(prefill or ()), *(decode or ())):
        if length > room:
            raise InvalidRequest(
                "bench", f"{length} tokens and {tokens} more should fit a context of {opened.context}", "see --context"
            )
    rows = [_row(opened, "prefill", n, tokens, runs) for n in prefill or (128, 512) if n <= room]
    rows += [_row(opened, "decode", n, tokens, runs) for n in decode or (16, 512) if n <= room]
    facts = {
        "model": opened.package.manifest.model.name,
        "device": device,
        "evidence": evidence(opened),
        "memory_bytes": opened.memory(),
        "implementations": sorted({f"{placed.op}: {placed.implementation}" for _, placed in opened.placement()}),
        "tokens_per_second": rows,
    }
    if as_json:
        print_json(facts)
        return
    from rich.table import Table

    table = Table("task", "context", "median", "least", "most", box=None, pad_edge=False)
    for row in rows:
        table.add_row(row["task"], str(row["context"]), *(f"{row[k]:.1f}" for k in ("median", "least", "most")))
    show(table)
    err.print(f"tokens per second, greedy, one sequence; {facts['evidence']}", style="dim")


def _row(model: Model, task: str, context: int, tokens: int, runs: int) -> dict[str, Any]:
    from statistics import median

    rates = []
    for run in range(runs + 1):  # the first warms caches and threads
        # ids differ between runs, so that no prefix is found in the cache
        ids = [(i * 7919 + 131 * run) % model.vocab_size for i in range(context)]
        result = model.generate(ids, max_tokens=tokens if task == "decode" else 1, ignore_eos=True)
        timings = result.timings
        rates.append(timings.decode_rate if task == "decode" else timings.prefill_rate)
    return {
        "task": task, "context": context, "median": median(rates[1:]), "least": min(rates[1:]),
        "most": max(rates[1:]),
    }  # fmt: skip
