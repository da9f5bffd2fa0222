"""`datong run`: one prompt, one answer."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Annotated

import typer

from datong.cli import options
from datong.cli.console import err, print_json


def run(
    model: options.Model,
    prompt: Annotated[str, typer.Argument(help="What to say; `-` reads it from stdin.", show_default=False)],
    max_tokens: options.MaxTokens = 512,
    temperature: options.Temperature = 0.0,
    top_k: options.TopK = 0,
    top_p: options.TopP = 1.0,
    min_p: options.MinP = 0.0,
    repetition_penalty: options.RepetitionPenalty = 1.0,
    seed: options.Seed = None,
    stop: options.Stop = None,
    system: options.System = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue the prompt as it is, without the chat template.")
    ] = False,
    logprobs: Annotated[int | None, typer.Option(help="With --json: also this many alternatives per token.")] = None,
    device: options.Device = "cpu",
    threads: options.Threads = None,
    isa: options.Isa = None,
    cache_dtype: options.CacheDtype = None,
    context: options.Context = None,
    strict: options.Strict = False,
    as_json: options.Json = False,
) -> None:
    """Answer one prompt; the text streams to stdout, timings go to stderr."""
    from datong.cli.loading import open_model, print_timings, prompt_of

    text = sys.stdin.read() if prompt == "-" else prompt
    opened = open_model(
        model, device, threads=threads, isa=isa, cache_dtype=cache_dtype, context=context, strict=strict
    )
    answer = opened.generate(
        prompt_of(opened, text, system, raw),
        stream=True,
        max_tokens=max_tokens,
        stop=stop or (),
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        logprobs=logprobs,
    )
    with answer:
        try:
            for chunk in answer:
                if not as_json:
                    sys.stdout.write(chunk.text)
                    sys.stdout.flush()
        except KeyboardInterrupt:
            err.print("\nstopped", style="yellow")
    if as_json:
        print_json(asdict(answer.result))
        return
    sys.stdout.write("\n")
    sys.stdout.flush()
    print_timings(answer.result)
