"""An answer as it streams, taken apart: reasoning, text and tool calls, by the marks of a package's `dialogue.json`.

Reasoning and text are given out as they come; the beginning of a mark is held back. A call is given out when it is
whole. What looks like a call and is none comes out as text: nothing that the model said is lost but marks and the line
breaks around them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from datong.engine.channels import ChannelReader
from datong.engine.pieces import Kind, Piece, beginning
from datong.engine.tool_calls import Calls, ToolCall
from datong.spec.dialogue import Dialogue

__all__ = ["DialogueReader", "Piece"]


class DialogueReader:
    """Reads one answer.

    Args:
        dialogue: of the package; None: everything is text.
        tools: those of the request, in OpenAI's form; None: calls are not looked for.
        prompt: the text that the answer continues; one that ends inside reasoning starts the answer there.
    """

    def __init__(
        self, dialogue: Dialogue | None, tools: Sequence[Mapping[str, Any]] | None = None, prompt: str = ""
    ) -> None:
        channels = dialogue.channels if dialogue else None
        self._channels = ChannelReader(channels, bool(tools)) if channels else None
        self._reasoning = dialogue.reasoning if dialogue else None
        self._calls = Calls(dialogue.tools, tools) if dialogue and dialogue.tools and tools else None
        self._mode: Kind | Literal["bare"] = "text"
        if self._reasoning and prompt.rstrip().endswith(self._reasoning.open):
            self._mode = "reasoning"
        self._held = ""  # not yet understood
        self._breaks = ""  # line breaks that are given out only if more of the same kind follows
        self._fresh = self._mode == "reasoning"  # after a mark: leading line breaks are its own
        self._begun = False
        self._out: list[Piece] = []

    def push(self, text: str) -> list[Piece]:
        """What became certain with this text."""
        if self._channels:
            return self._channels.push(text)
        self._held += text
        while self._advance():
            pass
        return self._take()

    def finish(self) -> list[Piece]:
        """What was held back, at the end of the answer."""
        if self._channels:
            return self._channels.finish()
        if self._mode in ("call", "bare") and self._calls:
            for call in self._calls.finish(self._held):
                self._give_call(call)
            self._held = self._calls.rest
            self._mode = "text"
        self._give("reasoning" if self._mode == "reasoning" else "text", self._held)
        if self._mode == "text" and self._breaks:
            self._out.append(Piece("text", self._breaks))
        self._held = self._breaks = ""
        return self._take()

    def _take(self) -> list[Piece]:
        """The pieces so far, neighbours of one kind joined."""
        joined: list[Piece] = []
        for piece in self._out:
            if joined and piece.kind == joined[-1].kind != "call":
                joined[-1] = Piece(piece.kind, joined[-1].text + piece.text)
            else:
                joined.append(piece)
        self._out = []
        return joined

    def _advance(self) -> bool:
        """One step; False: more text is needed."""
        if self._mode == "reasoning":
            return self._reason()
        if self._mode == "call":
            return self._call()
        if self._mode == "bare":
            return False
        return self._text()

    def _reason(self) -> bool:
        assert self._reasoning is not None
        mark = self._next([self._reasoning.close], "reasoning")
        if mark is not None:
            self._switch("text")
        return mark is not None

    def _text(self) -> bool:
        calls = self._calls
        if calls and calls.bare and not self._begun and (start := self._held.lstrip())[:1] in ("", "{"):
            if start:
                self._mode = "bare"
            return False
        opens = [self._reasoning.open] if self._reasoning else []
        mark = self._next(opens + ([calls.open] if calls and calls.open else []), "text")
        if mark is None:
            return False
        self._switch("reasoning" if mark in opens else "call")
        if calls and self._mode == "call":
            calls.start()
        return True

    def _call(self) -> bool:
        assert self._calls is not None
        call, self._held, ended = self._calls.push(self._held)
        if call is not None:
            self._give_call(call)
        if ended:
            self._switch("text")
            self._held, lost = self._held, self._calls.rest
            if lost:
                self._give("text", lost)
        return ended or call is not None

    def _next(self, marks: list[str], kind: Kind) -> str | None:
        """Give out what stands before the nearest mark, which is dropped and returned; None: none is whole yet."""
        hits = [(at, mark) for mark in marks if (at := self._held.find(mark)) >= 0]
        if hits:
            at, mark = min(hits)
            self._give(kind, self._held[:at])
            self._held = self._held[at + len(mark) :]
            return mark
        cut = len(self._held) - beginning(self._held, marks)
        self._give(kind, self._held[:cut])
        self._held = self._held[cut:]
        return None

    def _switch(self, mode: Kind) -> None:
        self._mode, self._fresh, self._breaks = mode, True, ""

    def _give(self, kind: Kind, text: str) -> None:
        if self._fresh:
            text = text.lstrip("\r\n")
        if not text:
            return
        self._fresh = False
        self._begun = self._begun or kind == "text"
        body = text.rstrip("\r\n")
        if body:
            self._out.append(Piece(kind, self._breaks + body))
            self._breaks = ""
        self._breaks += text[len(body) :]

    def _give_call(self, call: ToolCall) -> None:
        self._out.append(Piece("call", call=call))
        self._fresh, self._breaks = True, ""
