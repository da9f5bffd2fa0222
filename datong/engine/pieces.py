"""Parts of an answer, and what may be the beginning of a mark."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from datong.engine.tool_calls import ToolCall

Kind = Literal["text", "reasoning", "call"]


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of an answer. `call` is set when kind is `call`, `text` otherwise."""

    kind: Kind
    text: str = ""
    call: ToolCall | None = None


def beginning(text: str, marks: list[str]) -> int:
    """Length of the longest end of `text` that is the beginning of a mark."""
    longest = max((len(mark) for mark in marks), default=1) - 1
    for length in range(min(longest, len(text)), 0, -1):
        if any(mark.startswith(text[-length:]) for mark in marks):
            return length
    return 0
