"""`datong serve`: the OpenAI API in front of a package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from datong.cli import options
from datong.cli.console import err

CACHE_FACTOR = 4  # contexts that the cache of a server holds, when nobody says; memory is touched as it is used


def serve(
    model: options.Model,
    host: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Where to listen; default 127.0.0.1; 0.0.0.0: every network.")
    ] = None,
    port: Annotated[
        int | None, typer.Option(metavar="N", help="Default 8000; 0: any free one.", min=0, max=65535)
    ] = None,
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="What clients call the model; default: the package's name.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="TOML with a table [server]; flags count more.")
    ] = None,
    api_keys: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Hashes of the keys that may come in; see also DATONG_API_KEYS."),
    ] = None,
    max_requests: Annotated[
        int | None, typer.Option(metavar="N", help="Answers at once, running and waiting; more get 429; default 256.")
    ] = None,
    cache_tokens: Annotated[
        int | None, typer.Option(metavar="N", help="Tokens of all answers together; default: 4 contexts.")
    ] = None,
    timeout: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="The longest that one request may take; default 600.")
    ] = None,
    drain: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="For running requests after SIGTERM; default 120.")
    ] = None,
    tls_certificate: Annotated[Path | None, typer.Option(metavar="FILE", help="PEM; serves https.")] = None,
    tls_key: Annotated[Path | None, typer.Option(metavar="FILE", help="PEM; the certificate's key.")] = None,
    log_prompts: Annotated[
        bool | None, typer.Option("--log-prompts", help="Write prompts and answers into the log.")
    ] = None,
    device: options.Device = "cpu",
    split: options.Split = None,
    threads: options.Threads = None,
    isa: options.Isa = None,
    cache_dtype: options.CacheDtype = None,
    activations: options.Activations = None,
    own: options.Own = None,
    context: options.Context = None,
    strict: options.Strict = False,
) -> None:
    """Serve the OpenAI API to many users at once.

    The log is one JSON object per line on stderr. Ctrl-C and SIGTERM finish what runs and take nothing new; a second
    one ends at once.
    """
    from datong.cli.evidence import evidence
    from datong.cli.loading import open_model
    from datong.engine.load import DEFAULT_CONTEXT
    from datong.server.open import host_of
    from datong.server.run import serve as run
    from datong.server.settings import load

    flags = {
        "host": host,
        "port": port,
        "api_keys": api_keys,
        "max_requests": max_requests,
        "timeout_s": timeout,
        "drain_s": drain,
        "tls_certificate": tls_certificate,
        "tls_key": tls_key,
        "log_prompts": log_prompts,
    }
    settings = load(flags, config)
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
        cache_tokens=cache_tokens or CACHE_FACTOR * (context or DEFAULT_CONTEXT),
        strict=strict,
    )
    served = host_of(name, opened, evidence(opened), settings)
    run([served], settings, lambda url: err.print(f"serving {served.name} at {url}/v1", markup=False))
