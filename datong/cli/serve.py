"""`datong serve`: the OpenAI API in front of a package."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from datong.cli import options
from datong.cli.console import err
from datong.errors import InvalidRequest

if TYPE_CHECKING:
    from datong.server.hosts import Hosts, Opened
    from datong.server.settings import Settings

CACHE_FACTOR = 4  # contexts that the cache of a server holds, when nobody says; memory is touched as it is used
SETTING_OF = {"timeout": "timeout_s", "drain": "drain_s", "own": "options"}  # flags that are called differently
LOADING = (
    "split", "threads", "isa", "cache_dtype", "cache_tokens", "activations", "speculate", "context", "strict",
)  # fmt: skip


def serve(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL]...",
            help="Packages, Hugging Face directories, .gguf files or known names, each perhaps with @DEVICE; all but "
            "the first load when asked. None: those of --config.",
            show_default=False,
        ),
    ] = None,
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
        Path | None,
        typer.Option(metavar="FILE", help="TOML with a table [server] of these options; flags count more."),
    ] = None,
    api_keys: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Hashes of the keys that may come in; see also DATONG_API_KEYS."),
    ] = None,
    max_requests: Annotated[
        int | None, typer.Option(metavar="N", help="Answers at once, running and waiting; more get 429; default 256.")
    ] = None,
    max_choices: Annotated[
        int | None, typer.Option(metavar="N", help="Answers of one request: its prompts times `n`; default 16.")
    ] = None,
    max_body: Annotated[
        int | None, typer.Option(metavar="BYTES", help="The largest body; larger ones get 413; default 8 MiB.")
    ] = None,
    body_seconds: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="For a whole body to arrive; default 30.")
    ] = None,
    header_seconds: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="For headers to arrive; default 10.")
    ] = None,
    send_seconds: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="For a client to take what waits for it; default 60."),
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
        typer.Option(
            "--embeddings/--no-embeddings", help="Offer /v1/embeddings too; costs prompts a norm of every token."
        ),
    ] = None,
    page: Annotated[bool | None, typer.Option("--page/--no-page", help="The chat page at /; on by default.")] = None,
    log_prompts: Annotated[
        bool | None, typer.Option("--log-prompts/--no-log-prompts", help="Write prompts and answers into the log.")
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Where to run: a name that `datong devices` shows, by default cpu; of A,B the second runs what A "
            "refuses.",
        ),
    ] = None,
    split: options.Split = None,
    threads: options.Threads = None,
    isa: options.Isa = None,
    cache_dtype: options.CacheDtype = None,
    activations: options.Activations = None,
    speculate: options.Speculate = None,
    own: options.Own = None,
    context: options.Context = None,
    strict: Annotated[
        bool | None,
        typer.Option("--strict/--no-strict", help="Refuse if any operator would run elsewhere than on its device."),
    ] = None,
) -> None:
    """Serve the OpenAI API to many users at once.

    The log is one JSON object per line on stderr. Ctrl-C and SIGTERM finish what runs and take nothing new; a second
    one ends at once.
    """
    given = locals()  # flags have the names of settings, but for these
    flags = {SETTING_OF.get(flag, flag): value for flag, value in given.items() if flag != "config" and value != []}
    from datong.server.run import serve as run
    from datong.server.settings import load as load_settings

    settings = load_settings(flags, config)
    hosts = _hosts(settings)
    run(hosts, settings, lambda url: err.print(f"serving {', '.join(hosts.names)} at {url}/v1", markup=False))


def _hosts(settings: Settings) -> Hosts:
    """The first model opened, the others known by name. Raises as `engine.load.load`, and InvalidRequest."""
    from datong.cli.evidence import evidence
    from datong.cli.loading import open_model, options_of
    from datong.engine.load import DEFAULT_CONTEXT, load
    from datong.package.store import resolve
    from datong.server.hosts import Hosts, Opened

    if not settings.models:
        raise InvalidRequest("serve", "at least one model was expected, there is none", "datong serve smollm2")
    given = {name: getattr(settings, name) for name in LOADING}
    given["cache_tokens"] = settings.cache_tokens or CACHE_FACTOR * (settings.context or DEFAULT_CONTEXT)
    given["hidden"] = settings.embeddings

    def opener(source: str, where: str) -> Opened:
        asked: dict[str, Any] = {**given, **options_of(settings.options, given)}
        model = load(source, where, **asked)
        return Opened(model, evidence(model))

    text = settings.models[0]
    source, where = _placed(text, settings.device)
    first = open_model(source, where, own=settings.options, **given)
    name = settings.name or _name(first.package.manifest.model.name, text, where)
    opens: dict[str, Callable[[], Opened]] = {name: partial(opener, source, where)}
    for text in settings.models[1:]:
        source, where = _placed(text, settings.device)
        known = _name(resolve(source).manifest.model.name, text, where)
        if known in opens:
            raise InvalidRequest("serve", f"two models are called `{known}`", "--name calls the first one differently")
        opens[known] = partial(opener, source, where)
    hosts = Hosts(opens, settings)
    hosts.add(name, Opened(first, evidence(first)))
    return hosts


def _placed(text: str, device: str) -> tuple[str, str]:
    """`MODEL@DEVICE` -> both; a file of that very name is a model."""
    source, at, where = text.rpartition("@")
    return (text, device) if not at or not source or Path(text).exists() else (source, where)


def _name(model: str, text: str, where: str) -> str:
    """What clients call it: with the device where the command line named one for it."""
    return f"{model}@{where}" if text.endswith(f"@{where}") else model
