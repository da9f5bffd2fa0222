"""Answers in channels, after the examples of OpenAI's guide to the harmony response format."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datong.engine.dialogue import DialogueReader, Piece
from datong.importer.dialogue.choose import choose, entries

HARMONY = next(entry.dialogue for entry in entries() if entry.dialogue.name == "harmony")
TOOLS = [{"type": "function", "function": {"name": "get_current_weather"}}]
CALL = '{"location":"Tokyo","days":[1, 2]}'
MARKS = HARMONY.marks()
# what a model says after `<|start|>assistant` -> (kind, text or call)
NEXT, TO = "<|end|><|start|>assistant", "to=functions.get_current_weather"
SAID: list[tuple[str, list[tuple[str, Any]]]] = [
    (f"<|channel|>analysis<|message|>User asks 2 + 2.{NEXT}<|channel|>final<|message|>It is 4.<|return|>",
     [("reasoning", "User asks 2 + 2."), ("text", "It is 4.")]),
    (f"<|channel|>analysis<|message|>Need to use it.{NEXT}<|channel|>commentary {TO} <|constrain|>json<|message|>"
     f"{CALL}<|call|>",
     [("reasoning", "Need to use it."), ("call", ("get_current_weather", json.loads(CALL)))]),
    # the recipient in the role's part of the header, as the guide allows; the stop is not in the text
    (f" {TO}<|channel|>commentary json<|message|>{CALL}",
     [("call", ("get_current_weather", json.loads(CALL)))]),
    (f"<|channel|>commentary<|message|>**Plan**: ask twice.{NEXT}<|channel|>commentary {TO}<|message|>{CALL}<|call|>"
     "<|start|>assistant<|channel|>final<|message|>Done < 1",
     [("text", "**Plan**: ask twice."), ("call", ("get_current_weather", json.loads(CALL))), ("text", "\n\nDone < 1")]),
    (f"<|channel|>commentary {TO} <|constrain|>json<|message|>" "{no json<|call|>",
     [("text", "{no json")]),
    ("Plain text, no header.", [("text", "Plain text, no header.")]),
    ("<|channel|>final<|message|>", []),
    ("", []),
]  # fmt: skip


def read(text: str, size: int, tools: Any = TOOLS) -> list[tuple[str, Any]]:
    reader = DialogueReader(HARMONY, tools)
    pieces: list[Piece] = []
    for start in range(0, len(text), size):
        pieces += reader.push(text[start : start + size])
    found: list[tuple[str, Any]] = []
    for piece in [*pieces, *reader.finish()]:
        if piece.call:
            found.append(("call", (piece.call.name, json.loads(piece.call.arguments))))
        elif found and found[-1][0] == piece.kind:
            found[-1] = (piece.kind, found[-1][1] + piece.text)
        else:
            found.append((piece.kind, piece.text))
    return found


@pytest.mark.parametrize(("text", "wanted"), SAID)
def test_channels_are_told_apart_in_pieces_of_any_size(text: str, wanted: list[tuple[str, Any]]) -> None:
    for size in (1, 2, 3, 5, 7, 11, 1000):
        assert read(text, size) == wanted, size


def test_text_streams_before_its_end_is_there() -> None:
    reader = DialogueReader(HARMONY, TOOLS)
    assert reader.push("<|channel|>final<|message|>Hello, wor") == [Piece("text", "Hello, wor")]
    assert reader.push("ld<|") == [Piece("text", "ld")] and reader.push("ret") == []
    assert reader.push("urn|>") == [] and reader.finish() == []


def test_without_tools_a_call_is_text() -> None:
    assert read(SAID[1][0], 4, tools=None) == [("reasoning", "Need to use it."), ("text", CALL)]


WORDS = [*MARKS, "analysis", "final", "to=functions.f", " ", "{}", "x<|", "阀\n"]


@given(st.lists(st.sampled_from(WORDS), max_size=30), st.integers(1, 9))
def test_whatever_comes_is_read_the_same_in_any_pieces(parts: list[str], size: int) -> None:
    text = "".join(parts)
    assert read(text, size) == read(text, max(1, len(text)))


def test_gpt_oss_is_recognised() -> None:
    assert choose("{{ '<|start|>assistant<|channel|>final<|message|>' }}", "gpt_oss") == HARMONY
    assert choose(None, "gpt_oss") == HARMONY
