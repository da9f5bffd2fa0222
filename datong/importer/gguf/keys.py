"""Typed access to the metadata of a GGUF file; remembers which keys were used, so that none is overlooked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import numpy as np

from datong.errors import ConfigError, ImportFailed
from datong.importer.gguf.values import Strings, Value

T = TypeVar("T")


class Keys:
    """The key-value pairs of one file. `error` is the class raised for a key that is missing or of the wrong type."""

    def __init__(self, values: Mapping[str, Value], where: str, error: type[ImportFailed] = ConfigError) -> None:
        self.values, self.where, self.error = values, where, error
        self.used: set[str] = set()

    def raising(self, error: type[ImportFailed]) -> Keys:
        """The same keys, the same memory of use, another error class."""
        keys = Keys(self.values, self.where, error)
        keys.used = self.used
        return keys

    def fail(self, message: str, hint: str | None = None) -> ImportFailed:
        """The error for what a key says."""
        return self.error(self.where, message, hint)

    def has(self, key: str) -> bool:
        """Is the key there? Does not count as use."""
        return key in self.values

    def _get(self, key: str, kind: str, types: tuple[type[T], ...], default: T | None) -> T:
        value = self.values.get(key)
        if value is None:
            if default is None:
                raise self.fail(f"key `{key}` ({kind}) is missing", "convert the model again with a current llama.cpp")
            return default
        self.used.add(key)
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            raise self.fail(f"key `{key}` should be {kind}, it is {describe(value)}")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """A string."""
        return self._get(key, "a string", (str,), default)

    def word(self, key: str, default: str | None = None) -> str:
        """A short printable string, fit for an error text."""
        value = self.text(key, default)
        if len(value) > 80 or not value.isprintable():
            raise self.fail(f"key `{key}` should be a short name, it is {describe(value)}")
        return value

    def title(self, key: str, default: str) -> str:
        """A printable line for people; `default` where it is absent, empty or neither."""
        value = self.text(key, "")
        return value if 0 < len(value) <= 200 and value.isprintable() else default

    def integer(self, key: str, default: int | None = None, least: int = 0) -> int:
        """A whole number, at least `least`."""
        value = self._get(key, "a whole number", (int,), default)
        if value < least:
            raise self.fail(f"key `{key}` should be at least {least}, it is {value}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number."""
        value = float(self._get(key, "a number", (float, int), default))
        if not np.isfinite(value):
            raise self.fail(f"key `{key}` should be finite, it is {value}")
        return value

    def flag(self, key: str, default: bool | None = None) -> bool:
        """True or false."""
        return self._get(key, "true or false", (bool,), default)

    def same(self, key: str, layers: int, default: int | None = None) -> int:
        """A whole number, or an array with one equal number per layer."""
        value = self.values.get(key)
        if not isinstance(value, np.ndarray):
            return self.integer(key, default, least=1)
        self.used.add(key)
        if value.dtype.kind not in "iu" or len(value) < layers or len(set(value[:layers].tolist())) != 1:
            raise self.fail(f"key `{key}` should be one number for all {layers} layers, it is {describe(value)}")
        return int(value[0])

    def strings(self, key: str) -> Strings:
        """An array of strings."""
        return self._get(key, "an array of strings", (Strings,), None)

    def numbers(self, key: str, count: int) -> list[int] | list[float]:
        """An array of `count` numbers."""
        value = self._get(key, "an array of numbers", (np.ndarray,), None)
        if value.dtype.kind not in "iuf" or len(value) != count:
            raise self.fail(f"key `{key}` should be {count} numbers, it is {describe(value)}")
        result: list[int] | list[float] = value.tolist()
        return result


def describe(value: Value) -> str:
    """A value in a few words, for error texts."""
    if isinstance(value, Strings):
        return f"an array of {len(value)} strings"
    if isinstance(value, np.ndarray):
        return f"an array of {len(value)} {value.dtype} ({', '.join(map(str, value[:8].tolist()))} …)"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"
