"""What the operator of a server may set: by flags, DATONG_SERVE_<NAME>, and the table [server] of one TOML file.

A flag counts more than the environment, and that more than the file. Lists are lists in the file; in the environment
they are separated by blanks, as a shell reads them.
"""

from __future__ import annotations

import os
import shlex
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import msgspec

from datong import env
from datong.errors import DatongError

MIB = 1 << 20
PREFIX = env.SERVE.name


@dataclass(frozen=True, slots=True)
class Settings:
    """Seconds are float, sizes are bytes."""

    host: str = "127.0.0.1"
    port: int = 8000  # 0: any free one
    api_keys: Path | None = None  # file of hashes, see auth.py
    max_requests: int = 256  # answers at once, running and waiting; more get 429
    max_choices: int = 16  # prompts of one request times `n` or `best_of`
    max_body: int = 8 * MIB
    body_seconds: float = 30.0  # for a whole body to arrive
    header_seconds: float = 10.0  # for headers to arrive; a new connection says something within this time
    send_seconds: float = 60.0  # for a client to take what waits for it; then its connection is closed
    timeout_s: float = 600.0  # the longest that one request may take, and what it gets when it asks for nothing
    drain_s: float = 120.0  # after SIGTERM, for running requests
    memory_mb: int | None = None  # for all loaded models together, in MiB; None: as much as they take
    log_prompts: bool = False
    page: bool = True  # the chat at `/`
    embeddings: bool = False  # /v1/embeddings; costs prompts the last norm of every token
    tls_certificate: Path | None = None  # PEM
    tls_key: Path | None = None
    # what is loaded and where; None: as `engine.load.load` chooses
    models: tuple[str, ...] = ()  # each perhaps with @DEVICE; the first is loaded at once
    name: str | None = None  # of the first one
    device: str = "cpu"
    split: str | None = None
    threads: int | None = None
    isa: str | None = None
    cache_dtype: str | None = None
    cache_tokens: int | None = None  # of all answers together
    activations: str | None = None
    speculate: str | None = None
    context: int | None = None
    strict: bool = False
    options: tuple[str, ...] = ()  # NAME=VALUE, of the backend's own


def read_file(file: Path | None) -> dict[str, Any]:
    """The tables of a configuration file. Raises DatongError."""
    if file is None:
        return {}
    try:
        found = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise DatongError("config", f"`{file}` should be a TOML file: {error}") from None
    unknown = found.keys() - {"server"}
    if unknown:
        raise DatongError("config", f"`{file}` has a table `{min(unknown)}`, only [server] is known")
    return found


def load(flags: Mapping[str, Any], file: Path | None = None) -> Settings:
    """Settings from all three places; flags that are None were not given. Raises DatongError naming the setting."""
    known = {field.name for field in fields(Settings)}
    table = read_file(file).get("server", {})
    if unknown := table.keys() - known:
        raise DatongError("config", f"`{file}` has a setting `{min(unknown)}`, it is not known", _known(known))
    environment: dict[str, Any] = {
        name[len(PREFIX) :].lower(): value for name, value in os.environ.items() if name.startswith(PREFIX) and value
    }
    if unknown := environment.keys() - known:
        raise DatongError("config", f"`{PREFIX}{min(unknown).upper()}` is not known", _known(known))
    environment |= {name: _words(name, environment[name]) for name in LISTS if name in environment}
    given = {name: value for name, value in flags.items() if value is not None}
    settings = Settings()
    for source, values in ((str(file), table), ("the environment", environment), ("the command line", given)):
        settings = _with(settings, values, source)
    if bool(settings.tls_certificate) != bool(settings.tls_key):
        raise DatongError("config", "tls_certificate and tls_key belong together, one is missing")
    return settings


def _with(settings: Settings, values: Mapping[str, Any], source: str) -> Settings:
    now = {field.name: getattr(settings, field.name) for field in fields(Settings)}
    for name, value in values.items():
        kind = Settings.__annotations__[name]
        try:
            found = msgspec.convert(value, _KINDS[kind], strict=False, dec_hook=_path)
        except msgspec.ValidationError as error:
            raise DatongError("config", f"`{name}` from {source}: {error}, got `{value}`") from None
        if isinstance(found, (int, float)) and not isinstance(found, bool) and found < (0 if name == "port" else 1e-3):
            raise DatongError("config", f"`{name}` from {source} should be above 0, got `{value}`")
        now[name] = found
    return Settings(**now)


_KINDS: dict[str, Any] = {
    "str": str, "str | None": str, "int": int, "int | None": int, "float": float, "bool": bool, "Path | None": Path,
    "tuple[str, ...]": tuple[str, ...],
}  # fmt: skip
LISTS = tuple(field.name for field in fields(Settings) if field.type == "tuple[str, ...]")


def _words(name: str, text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise DatongError("config", f"`{PREFIX}{name.upper()}`: {error}, got `{text}`") from None


def _path(kind: type, value: Any) -> Path:
    if isinstance(value, (str, Path)):
        return Path(value).expanduser()
    raise ValueError("Expected a path")


def _known(names: set[str]) -> str:
    return f"settings: {', '.join(sorted(names))}"
