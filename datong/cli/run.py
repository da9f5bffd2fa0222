"""`datong run`: one prompt, one answer."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Annotated

import typer

from datong.cli import options
from datong.cli.console import print_json, write
from datong.errors import InvalidRequest


def run(
    model: options.Model,
    prompt: Annotated[
        str, typer.Argument(metavar="PROMPT", help="What to say; `-` reads it from stdin.", show_default=False)
    ],
    max_tokens: options.MaxTokens = 512,
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    min_p: options.MinP = None,
    repetition_penalty: options.RepetitionPenalty = None,
    seed: options.Seed = None,
    stop: options.Stop = None,
    system: options.System = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue the prompt as it is, without the chat template.")
    ] = False,
    logprobs: Annotated[
        int | None, typer.Option(metavar="N", help="With --json: also this many alternatives per token.")
    ] = None,
    device: options.Device = "cpu",
    split: options.Split = None,
    threads: options.Threads = None,
    isa: options.Isa = None,
    cache_dtype: options.CacheDtype = None,
    activations: options.Activations = None,
    own: options.Own = None,
    context: options.Context = None,
    speculate: options.Speculate = None,
    strict: options.Strict = False,
    placement: Annotated[bool, typer.Option("--placement", help="Then say which implementation ran what.")] = False,
    as_json: options.Json = False,
) -> None:
    """Answer one prompt: text to stdout, timings to stderr.

    Sampling settings that are not given come from the package's generation_config.json; without one the answer is
    greedy, the same each time. Ctrl-C ends the answer, with exit code 130.
    """
    from datong.cli.evidence import evidence
    from datong.cli.loading import open_model, print_placement, print_timings, prompt_of, text_of
    from datong.cli.sampling import GREEDY, sampling

    if logprobs is not None and not as_json:
        raise InvalidRequest("run", "--logprobs are part of the JSON output, --json was not given", "add --json")
    text = text_of(sys.stdin.read() if prompt == "-" else prompt, "stdin" if prompt == "-" else "the prompt")
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
        speculate=speculate,
        strict=strict,
    )
    given = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p,
             "repetition_penalty": repetition_penalty, "seed": seed}  # fmt: skip
    answer = opened.generate(
        prompt_of(opened, text, system, raw),
        stream=True,
        max_tokens=max_tokens,
        stop=stop or (),
        logprobs=logprobs,
        **sampling(opened.package, given, GREEDY),
    )
    interrupted = False
    with answer:
        try:
            for chunk in answer:
                if not as_json:
                    write(chunk.text)
        except KeyboardInterrupt:
            interrupted = True
    if as_json:
        print_json({**asdict(answer.result), "device": opened.device, "evidence": evidence(opened)})
    else:
        write("" if answer.result.text.endswith("\n") else "\n")
        print_timings(answer.result, interrupted)
    if placement:
        print_placement(opened)
    if interrupted:
        raise typer.Exit(130)
