"""Options that several verbs share, declared once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[
    str,
    typer.Argument(
        help="A package, a Hugging Face directory, a .gguf file, or a known name (smollm2).", show_default=False
    ),
]
PackageDir = Annotated[Path, typer.Argument(help="A package directory.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document for machines.")]
Device = Annotated[str, typer.Option(help="Where to run: a name that `datong devices` shows.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads; default: the physical cores this process may use.")]
Isa = Annotated[str | None, typer.Option(help="Force a CPU kernel family: ref, avx2 or avx512.")]
CacheDtype = Annotated[
    str | None, typer.Option(help="KV cache type: f32, f16 or bf16; default: f32 for f32 weights, else f16.")
]
Context = Annotated[int | None, typer.Option(help="Tokens to keep room for; default: the model's, at most 4096.")]
Strict = Annotated[bool, typer.Option("--strict", help="Refuse if any operator would run elsewhere than on --device.")]

MaxTokens = Annotated[int, typer.Option(help="Longest answer, in tokens.")]
Temperature = Annotated[float, typer.Option(help="0 is greedy; higher is more random.")]
TopK = Annotated[int, typer.Option(help="Keep the k likeliest tokens; 0: all.")]
TopP = Annotated[float, typer.Option(help="Keep the likeliest tokens that make up this share; 1: all.")]
MinP = Annotated[float, typer.Option(help="Drop tokens below this share of the likeliest; 0: none.")]
RepetitionPenalty = Annotated[float, typer.Option(help="Above 1: tokens seen before become less likely.")]
Seed = Annotated[int | None, typer.Option(help="Makes sampling repeatable.")]
Stop = Annotated[list[str] | None, typer.Option(help="End before this text; may be given several times.")]
System = Annotated[str | None, typer.Option(help="System message.")]
