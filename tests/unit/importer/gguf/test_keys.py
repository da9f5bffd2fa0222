"""Typed access to keys: what is used is remembered, what is wrong is described."""

from __future__ import annotations

import numpy as np
import pytest

from datong.errors import ConfigError, TokenizerError
from datong.importer.gguf.keys import Keys, describe


def test_use_is_remembered_over_error_classes() -> None:
    keys = Keys({"a": 1, "b": "x", "c": True}, "m.gguf")
    assert keys.has("a") and keys.used == set()
    assert keys.integer("a") == 1 and keys.raising(TokenizerError).text("b") == "x" and keys.flag("c") is True
    assert keys.used == {"a", "b", "c"} and keys.integer("absent", 7) == 7
    with pytest.raises(TokenizerError, match=r"\[m.gguf\] key `absent` \(a string\) is missing"):
        keys.raising(TokenizerError).text("absent")


def test_defaults_that_are_false_are_defaults() -> None:
    keys = Keys({}, "m.gguf")
    assert (
        keys.flag("x", False) is False
        and keys.integer("x", 0) == 0
        and keys.number("x", 0.0) == 0
        and keys.text("x", "") == ""
    )


def test_words_and_titles() -> None:
    keys = Keys({"long": "x" * 81, "odd": "a\tb", "fine": "two words"}, "m.gguf")
    assert keys.word("fine") == "two words" == keys.title("fine", "none")
    assert keys.title("odd", "none") == "none" == keys.title("absent", "none")
    for key in ("long", "odd"):
        with pytest.raises(ConfigError, match=f"key `{key}` should be a short name"):
            keys.word(key)


def test_arrays() -> None:
    keys = Keys({"i": np.array([3, 3, 4], np.int32), "b": np.array([True])}, "m.gguf")
    assert keys.numbers("i", 3) == [3, 3, 4] and keys.same("i", 2) == 3
    with pytest.raises(ConfigError, match="key `i` should be one number for all 3 layers"):
        keys.same("i", 3)
    with pytest.raises(ConfigError, match="key `b` should be 1 numbers, it is an array of 1 bool"):
        keys.numbers("b", 1)


def test_descriptions_are_short_and_on_one_line() -> None:
    assert describe("a\nb") == r"'a\nb'" and len(describe("x" * 10_000)) < 100
    assert describe(np.arange(100)) == "an array of 100 int64 (0, 1, 2, 3, 4, 5, 6, 7 …)"
