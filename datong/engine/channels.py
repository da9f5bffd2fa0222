"""An answer in channels, as gpt-oss writes it: messages with a header that says for whom they are.

    <|channel|>analysis<|message|> … <|end|><|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json
    <|message|>{…}<|call|>

A header ends with `message`; in it stand, in any order, a channel and perhaps a recipient. A message for a function is
a call, one in a channel of reasoning is reasoning, every other one is text. Text without a header is text.
"""

from __future__ import annotations

import json
import re

from datong.engine.pieces import Kind, Piece, beginning
from datong.engine.tool_calls import ToolCall
from datong.spec.dialogue import Channels

MAX_HEADER = 512  # characters; what is longer is no header


class ChannelReader:
    """Reads one answer. `calls`: look for calls, else what would be one is text."""

    def __init__(self, form: Channels, calls: bool) -> None:
        self._form, self._calls = form, calls
        self._held = ""  # not yet understood
        self._kind: Kind | None = None  # of the message under way; None: between messages
        self._function = ""  # whose arguments are under way
        self._messages = 0  # that began so far
        self._texts = 0  # messages that were text so far

    def push(self, text: str) -> list[Piece]:
        """What became certain with this text."""
        self._held += text
        found: list[Piece] = []
        while (more := self._header() if self._kind is None else self._body()) is not None:
            found += more
        if self._kind in ("text", "reasoning"):  # as it streams, but for what may be the beginning of a mark
            cut = len(self._held) - beginning(self._held, [*self._form.ends, self._form.start])
            found += self._pieces(self._held[:cut])
            self._held = self._held[cut:]
        return found

    def finish(self) -> list[Piece]:
        """What was held back, at the end of the answer: the last mark is often a stop and not in the text."""
        if self._kind is None and (not self._held or (self._messages and self._held.isspace())):
            return []
        if self._kind is None:
            self._begin("text")
        found = self._end(self._held)
        self._held = ""
        return found

    def _header(self) -> list[Piece] | None:
        """Read up to `message`; None: more text is needed, or there is nothing."""
        form, text = self._form, self._held.lstrip()
        firsts = (form.start, form.channel, form.recipient)
        if not text:
            return None
        if text.startswith(firsts):
            at = text.find(form.message, 0, MAX_HEADER)
            if at < 0 and len(text) < MAX_HEADER:
                return None
            if at >= 0:
                self._held = text[at + len(form.message) :]
                self._read(text[:at])
                return []
        elif any(first.startswith(text) for first in firsts):
            return None
        self._begin("text")
        return []

    def _read(self, header: str) -> None:
        form = self._form
        marks = filter(None, (form.start, form.channel, form.constrain))
        words = re.sub("|".join(map(re.escape, marks)), r" \g<0>", header).split()
        channel = next((word[len(form.channel) :] for word in words if word.startswith(form.channel)), "")
        to = next((word[len(form.recipient) :] for word in words if word.startswith(form.recipient)), "")
        if self._calls and to.startswith(form.functions):
            self._begin("call")
            self._function = to[len(form.functions) :]
        else:
            self._begin("reasoning" if channel in form.reasoning else "text")

    def _begin(self, kind: Kind) -> None:
        self._kind = kind
        self._messages += 1

    def _body(self) -> list[Piece] | None:
        """Read to the end of the message, or to the start of the next; None: it is not there yet."""
        marks = [*self._form.ends, self._form.start]
        hits = [(at, mark) for mark in marks if (at := self._held.find(mark)) >= 0]
        if not hits:
            return None
        at, mark = min(hits)
        found = self._end(self._held[:at])
        self._held = self._held[at + (0 if mark == self._form.start else len(mark)) :]
        return found

    def _end(self, text: str) -> list[Piece]:
        """The rest of a message."""
        if self._kind == "call":
            found = [self._call(text)]
        else:
            found = self._pieces(text)
            self._texts += self._kind == "text"
        self._kind = None
        return found

    def _pieces(self, text: str) -> list[Piece]:
        if not text:
            return []
        if self._kind == "text" and self._texts > 0:  # a preamble was before
            self._texts, text = 0, "\n\n" + text
        return [Piece(self._kind or "text", text)]

    def _call(self, text: str) -> Piece:
        try:
            arguments = json.loads(text) if text.strip() else {}
        except (ValueError, RecursionError):
            arguments = None
        if not isinstance(arguments, dict):
            return Piece("text", text)
        return Piece("call", call=ToolCall(self._function, json.dumps(arguments, ensure_ascii=False)))
