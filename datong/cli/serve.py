"""`datong serve`: the OpenAI API in front of a package."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from datong.cli import options
from datong.cli.console import err
from datong.errors import InvalidRequest

CACHE_FACTOR = 4  # contexts that the cache of a server holds, when nobody says; memory is touched as it is used


def serve(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...",
            help="Packages, Hugging Face directories, .gguf files or known names, each perhaps with @DEVICE; all but "
            "the first load when asked.",
            show_default=False,
        ),
    ],
    host: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Where to listen; default 127.0.0.1; 0.0.0.0: every network.")
    ] = None,
    port: Annotated[
        int | None, typer.Option(metavar="N", help="Default 8000; 0: any free one.", min=0, max=65535)
    ] = None,
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="What clients call the first model; default: its package's.")
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
    memory_mb: Annotated[
        int | None, typer.Option(metavar="N", help="Memory for all loaded models; unused ones make room for others.")
    ] = None,
    timeout: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="The longest that one request may take; default 600.")
    ] = None,
    drain: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="For running requests after SIGTERM; default 120.")
    ] = None,
    tls_certificate: Annotated[Path | None, typer.Option(metavar="FILE", help="PEM; serves https.")] = None,
    tls_key: Annotated[Path | None, typer.Option(metavar="FILE", help="PEM; the certificate's key.")] = None,
    embeddings: Annotated[
        bool | None,
        typer.Option("--embeddings", help="Offer /v1/embeddings too; costs prompts a norm of every token."),
    ] = None,
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
    from datong.cli.loading import open_model, options_of
    from datong.engine.load import DEFAULT_CONTEXT, load
    from datong.package.store import resolve
    from datong.server.hosts import Hosts, Opened
    from datong.server.run import serve as run
    from datong.server.settings import load as load_settings

    flags = {
        "host": host,
        "port": port,
        "api_keys": api_keys,
        "max_requests": max_requests,
        "memory_mb": memory_mb,
        "timeout_s": timeout,
        "drain_s": drain,
        "tls_certificate": tls_certificate,
        "tls_key": tls_key,
        "embeddings": embeddings,
        "log_prompts": log_prompts,
    }
    settings = load_settings(flags, config)
    given: dict[str, Any] = {
        "split": split,
        "threads": threads,
        "isa": isa,
        "cache_dtype": cache_dtype,
        "activations": activations,
        "context": context,
        "cache_tokens": cache_tokens or CACHE_FACTOR * (context or DEFAULT_CONTEXT),
        "strict": strict,
        "hidden": settings.embeddings,
    }

    def opener(source: str, where: str) -> Opened:
        asked: dict[str, Any] = {**given, **options_of(own or (), given)}
        model = load(source, where, **asked)
        return Opened(model, evidence(model))

    source, where = _placed(models[0], device)
    first = open_model(source, where, own=own, **given)
    name = name or _name(first.package.manifest.model.name, models[0], where)
    opens = {name: partial(opener, source, where)}
    for text in models[1:]:
        source, where = _placed(text, device)
        known = _name(resolve(source).manifest.model.name, text, where)
        if known in opens:
            raise InvalidRequest("serve", f"two models are called `{known}`", "--name calls the first one differently")
        opens[known] = partial(opener, source, where)
    hosts = Hosts(opens, settings)
    hosts.add(name, Opened(first, evidence(first)))
    run(hosts, settings, lambda url: err.print(f"serving {', '.join(opens)} at {url}/v1", markup=False))


def _placed(text: str, device: str) -> tuple[str, str]:
    """`MODEL@DEVICE` -> both; a file of that very name is a model."""
    source, at, where = text.rpartition("@")
    return (text, device) if not at or not source or Path(text).exists() else (source, where)


def _name(model: str, text: str, where: str) -> str:
    """What clients call it: with the device where the command line named one for it."""
    return f"{model}@{where}" if text.endswith(f"@{where}") else model
