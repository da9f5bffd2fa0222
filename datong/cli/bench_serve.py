"""`datong bench serve`: what many clients see of a server that speaks the OpenAI API, ours or any other."""

from __future__ import annotations

import json
import random
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from datong.cli import options
from datong.cli.console import err, print_json, show
from datong.errors import InvalidRequest

if TYPE_CHECKING:
    from datong.server.loadtest import Answer

WORDS = (
    *("river", "stone", "lamp", "engine", "window", "paper"),
    *("valley", "signal", "harbour", "train", "bottle", "mirror"),
)
WHERE = "bench serve"


def bench_serve(
    url: Annotated[str, typer.Argument(metavar="URL", help="Such as http://127.0.0.1:8000.", show_default=False)],
    model: Annotated[str | None, typer.Option(metavar="NAME", help="Default: the first that the server lists.")] = None,
    requests: Annotated[int, typer.Option(metavar="N", min=1, help="How many.")] = 100,
    seconds: Annotated[
        float | None, typer.Option(metavar="S", min=0, help="Stop asking after this time, whatever --requests says.")
    ] = None,
    clients: Annotated[int, typer.Option(metavar="N", min=1, help="At once; each asks again when answered.")] = 8,
    rate: Annotated[
        float | None, typer.Option(metavar="R", min=0, help="Requests per second, instead of --clients.")
    ] = None,
    arrivals: Annotated[str, typer.Option(metavar="HOW", help="With --rate: poisson, or fixed.")] = "poisson",
    words: Annotated[int, typer.Option(metavar="N", min=1, help="Words of each made-up prompt; all differ.")] = 100,
    prompts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Prompts instead, one per line, taken in turn.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(metavar="N", min=1, help="Tokens of each answer at most.")] = 64,
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos", help="All answers as long as that; not every server knows the field.")
    ] = False,
    chat: Annotated[bool, typer.Option("--chat", help="Ask /v1/chat/completions, not /v1/completions.")] = False,
    key: Annotated[str, typer.Option(metavar="KEY", envvar="OPENAI_API_KEY", help="API key.")] = "",
    seed: Annotated[int, typer.Option(metavar="N", help="Of arrivals and made-up prompts.")] = 0,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw the times of all requests as SVG.")] = None,
    as_json: options.Json = False,
) -> None:
    """Measure a server under load: time to first token, time per token, throughput."""
    import asyncio

    from datong.cli.console import progress
    from datong.server.loadtest import Plan, run, summary

    if arrivals not in ("poisson", "fixed"):
        raise InvalidRequest(WHERE, f"--arrivals should be poisson or fixed, got `{arrivals}`")
    texts = _read(prompts) if prompts else made_up(requests if seconds is None else min(requests, 1000), words, seed)
    plan = Plan(
        url, model or _first_model(url, key), texts, max_tokens, requests, seconds or float("inf"), clients,
        rate or 0.0, arrivals, chat, key, seed, extra={"ignore_eos": True} if ignore_eos else {},
    )  # fmt: skip
    with progress(f"asking {plan.model}") as report:
        answers = asyncio.run(run(plan, lambda ended: report("requests", ended, requests)))
    facts = {"url": url, "model": plan.model, **summary(answers)}
    if plot is not None:
        _draw(plot, answers, f"{plan.model} at {url}")
    if as_json:
        print_json(facts)
    else:
        _show(facts)
    if not facts["answered"]:
        raise typer.Exit(1)


def _read(file: Path) -> list[str]:
    try:
        found = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(WHERE, f"`{file}` should be a text file with a prompt on each line: {error}") from None
    if not found:
        raise InvalidRequest(WHERE, f"`{file}` should hold at least one prompt, it is empty")
    return found


def made_up(count: int, words: int, seed: int) -> list[str]:
    """Texts that begin differently, so that no server has them in its prefix cache."""
    rng = random.Random(seed)  # words, no secrets
    return [f"{seed} {i} " + " ".join(rng.choice(WORDS) for _ in range(words)) for i in range(count)]


def _first_model(url: str, key: str) -> str:
    address = f"{url.rstrip('/').removesuffix('/v1')}/v1/models"
    if not address.startswith(("http://", "https://")):
        raise InvalidRequest(WHERE, f"a server's URL was expected, got `{url}`", "such as: http://127.0.0.1:8000")
    asked = urllib.request.Request(address, headers={"Authorization": f"Bearer {key}"} if key else {})
    try:
        with urllib.request.urlopen(asked, timeout=30) as answer:
            return str(json.load(answer)["data"][0]["id"])
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise InvalidRequest(WHERE, f"`{address}` should list models, got: {error}", "is the server running?") from None


def _show(facts: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table("milliseconds", "mean", "p50", "p90", "p99", box=None, pad_edge=False)
    labels = {"ttft": "first token", "tpot": "per token", "between": "between pieces", "whole": "whole answer"}
    for name, label in labels.items():
        row = facts["milliseconds"][name]
        table.add_row(label, *(f"{row[k]:.1f}" if row else "-" for k in ("mean", "p50", "p90", "p99")))
    show(table)
    show(
        f"{facts['answered']} of {facts['requests']} answered in {facts['seconds']:.1f} s: "
        f"{facts['tokens_per_second']:.1f} tokens/s, {facts['requests_per_second']:.2f} requests/s"
    )
    for text, count in facts["errors"].items():
        err.print(f"{count} x {text}", style="red", markup=False)


def _draw(file: Path, answers: list[Answer], title: str) -> None:
    """Each request as a bar over time: waiting for its first token, then answering."""
    from html import escape

    width, height, left = 900, 3, 60
    end = max((a.last for a in answers), default=1.0) or 1.0
    scale = (width - left - 20) / end
    bars = []
    for i, a in enumerate(sorted(answers, key=lambda a: a.begin)):
        y = 50 + i * height
        for begin, stop, colour in ((a.begin, a.first or a.last, "#c8743c"), (a.first, a.last, "#4878a8")):
            if stop > begin and begin >= a.begin:
                x, size = left + begin * scale, (stop - begin) * scale
                bars.append(f'<rect x="{x:.1f}" y="{y}" width="{size:.1f}" height="{height - 1}" fill="{colour}"/>')
    tall = 90 + len(answers) * height
    ticks = "".join(
        f'<text x="{left + at * scale:.0f}" y="{tall - 20}" text-anchor="middle">{at:.1f} s</text>'
        for at in (end * part / 4 for part in range(5))
    )
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{tall}" font-family="sans-serif" '
        f'font-size="12">'
        f'<rect width="100%" height="100%" fill="#fff"/><text x="10" y="20" font-size="14">{escape(title)}</text>'
        f'<text x="10" y="38">a line for each request: waiting for its first token (brown), answering (blue)</text>'
    )
    partial = file.with_name(f"{file.name}.partial")
    try:
        partial.write_text("\n".join([head, *bars, ticks, "</svg>"]) + "\n", encoding="utf-8")
        partial.replace(file)
    except OSError as error:
        raise InvalidRequest(WHERE, f"`{file}` cannot be written: {error.strerror}") from None
