"""Options that several verbs share, declared once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A package, a Hugging Face directory, a .gguf file, or a known name (smollm2).",
        show_default=False,
    ),
]
PackageDir = Annotated[Path, typer.Argument(metavar="PACKAGE", help="A package directory.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document for machines.")]
Device = Annotated[
    str,
    typer.Option(
        metavar="NAME", help="Where to run: a name that `datong devices` shows; of A,B the second runs what A refuses."
    ),
]
Split = Annotated[
    str | None,
    typer.Option(metavar="N,…", help="First layers of the second device, the third, …: layers before them run on A."),
]
Own = Annotated[
    list[str] | None,
    typer.Option("--option", metavar="NAME=VALUE", help="An option of the backend's own; may be given several times."),
]
Threads = Annotated[
    int | None, typer.Option(metavar="N", help="CPU threads; default: DATONG_THREADS, else the cores there are.")
]
Isa = Annotated[str | None, typer.Option(metavar="NAME", help="Force a CPU kernel family: ref, avx2, avx512, neon …")]
CacheDtype = Annotated[
    str | None,
    typer.Option(metavar="TYPE", help="KV cache: f32, f16 or bf16; default: f32 for f32 weights, else 16 bits."),
]
Activations = Annotated[
    str | None,
    typer.Option(
        metavar="TYPE",
        help="What 4- to 8-bit weights are multiplied with: i8 (default) or f32 (exact, slow); bf16 ones with: bf16.",
    ),
]
Speculate = Annotated[
    str | None,
    typer.Option(
        metavar="HOW",
        help="Guess tokens ahead, the answer stays the same: heads (the model's own) or lookup (in the text so far).",
    ),
]
Context = Annotated[
    int | None, typer.Option(metavar="N", help="Tokens to keep room for; default: the model's, at most 4096.")
]
Strict = Annotated[
    bool,
    typer.Option(
        "--strict", help="Refuse if any operator would run elsewhere than on --device, or on its layer's device."
    ),
]

MaxTokens = Annotated[int, typer.Option(metavar="N", help="Longest answer, in tokens.")]
Temperature = Annotated[float | None, typer.Option(metavar="X", help="0 is greedy; higher is more random.")]
TopK = Annotated[int | None, typer.Option(metavar="N", help="Keep the N likeliest tokens; 0: all.")]
TopP = Annotated[
    float | None, typer.Option(metavar="X", help="Keep the likeliest tokens that make up this share; 1: all.")
]
MinP = Annotated[
    float | None, typer.Option(metavar="X", help="Drop tokens below this share of the likeliest; 0: none.")
]
RepetitionPenalty = Annotated[
    float | None, typer.Option(metavar="X", help="Above 1: tokens seen before become less likely.")
]
Seed = Annotated[int | None, typer.Option(metavar="N", help="Makes sampling repeatable.")]
Stop = Annotated[
    list[str] | None, typer.Option(metavar="TEXT", help="End before this text; may be given several times.")
]
System = Annotated[str | None, typer.Option(metavar="TEXT", help="System message.")]
