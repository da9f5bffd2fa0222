"""API keys. The server keeps hashes only; a key is compared by its SHA-256, which is enough for random keys.

A key file has one key per line: `sha256:<64 hex digits> [name] [requests=N] [tokens=N] [concurrent=N]`, the limits per
minute and at once (limits.py); `#` starts a comment. Such a line is made by

    key=sk-$(head -c 24 /dev/urandom | base64 | tr -d '+/=')
    echo "sha256:$(printf %s "$key" | sha256sum | cut -d' ' -f1) application-1" >> keys

DATONG_API_KEYS holds keys themselves, separated by commas, optionally `name=key`.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from pathlib import Path

from datong import env
from datong.errors import DatongError
from datong.server.errors import ApiError
from datong.server.limits import Limits, Meter

_LINE = re.compile(r"sha256:([0-9a-fA-F]{64})(?:\s+([\w.@-]{1,64}))?((?:\s+(?:requests|tokens|concurrent)=\d{1,9})*)")


class Keys:
    """Hash -> name. Empty: everybody may come in."""

    def __init__(self, names: dict[str, str], limits: dict[str, Limits] | None = None) -> None:
        self._names = names
        self._meters = {name: Meter(found) for name, found in (limits or {}).items() if found}

    def __bool__(self) -> bool:
        return bool(self._names)

    @classmethod
    def load(cls, file: Path | None) -> Keys:
        """From the file and the environment. Raises DatongError for a line that is no key."""
        names, limits = _from_file(file) if file is not None else ({}, {})
        for i, entry in enumerate(filter(None, map(str.strip, (env.API_KEYS.text() or "").split(",")))):
            name, equals, key = entry.partition("=")
            if not equals:
                name, key = f"environment-{i + 1}", entry
            names[_hash(key)] = name
        return cls(names, limits)

    def meter(self, name: str | None) -> Meter | None:
        """Of a key that has limits."""
        return self._meters.get(name or "")

    def name_of(self, authorization: str | None) -> str | None:
        """Whose key it is; None where no keys are needed. Raises ApiError 401."""
        if not self._names:
            return None
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise _refused("An API key is needed: `Authorization: Bearer <key>`", "missing_api_key")
        given, found = _hash(key.strip()), None
        for known, name in self._names.items():  # all of them: the time must not tell how near a guess was
            if hmac.compare_digest(known, given):
                found = name
        if found is None:
            raise _refused("This API key is not known", "invalid_api_key")
        return found


def _from_file(file: Path) -> tuple[dict[str, str], dict[str, Limits]]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DatongError("api keys", f"`{file}` cannot be read: {error}") from None
    names: dict[str, str] = {}
    limits: dict[str, Limits] = {}
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        match = _LINE.fullmatch(text)
        if match is None:
            raise DatongError(
                "api keys",
                f"`{file}` line {number} should be `sha256:<64 hex digits> [name] [requests=N …]`, it is not",
                "printf %s KEY | sha256sum",
            )
        name = names[match[1].lower()] = match[2] or f"key-{number}"
        limits[name] = Limits(
            **{key: int(value) for key, _, value in (word.partition("=") for word in match[3].split())}
        )
    if not names:
        raise DatongError("api keys", f"`{file}` should hold at least one key, it has none", "leave the option out")
    return names, limits


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def _refused(text: str, code: str) -> ApiError:
    return ApiError(401, text, code=code, kind="authentication_error", headers={"WWW-Authenticate": "Bearer"})
