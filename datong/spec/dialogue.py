"""How a model writes reasoning and tool calls into its answers, as data: `dialogue.json` of a package.

A description is a set of literal marks; no pattern, no code. `engine/dialogue.py` reads answers with it.

    <think> … </think>  text  <section> <call> name  arguments </call> <call> … </call> </section>
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from datong.errors import PackageError

NAME = "dialogue.json"
MAX_BYTES = 64 << 10

Mark = Annotated[str, Meta(max_length=128)]
Marks = tuple[Mark, Mark]  # before and after


class _Strict(Struct, forbid_unknown_fields=True, frozen=True):
    """Base: immutable, and no key beyond those declared."""


class Reasoning(_Strict, frozen=True):
    """Thoughts between two marks. A prompt that ends with `open` starts an answer inside them."""

    open: Annotated[str, Meta(min_length=1, max_length=128)]
    close: Annotated[str, Meta(min_length=1, max_length=128)]


class Pairs(_Strict, frozen=True):
    """One argument: `key[0] name key[1] value[0] text value[1]`.

    A `value[1]` with `{key}` holds the argument's own name. `typed` names alternatives of `value[0]` and what they say
    of the text: `string` (as it is) or `json`; without, the tool's schema says it. `newline`: one line break on either
    side of the text belongs to the marks. `nested`: a text that begins with key[0] is an object of such pairs, or a
    list where all are called `item`.
    """

    key: Marks
    value: Marks
    typed: dict[Mark, Literal["string", "json"]] = {}
    newline: bool = False
    nested: bool = False


class ToolCalls(_Strict, frozen=True):
    """Where calls stand, and what one looks like. An empty mark is absent."""

    section: Marks = ("", "")  # around all calls of an answer
    call: Marks = ("", "")  # around one
    between: tuple[Mark, ...] = ()  # what may stand between calls, besides white space
    bare: bool = False  # an answer that begins with `{` is a call, without any mark
    name: Marks | None = None  # around the function's name; an absent second one: the name ends where arguments begin
    fields: tuple[tuple[Mark, Mark], ...] = ()  # JSON with these keys holds name and arguments, tried in order
    pairs: Pairs | None = None  # None: the arguments are one JSON object
    end: Mark = ""  # what models write after the arguments; a reader does without


class Channels(_Strict, frozen=True):
    """An answer of several messages, each with a header: `[start role] [recipient] channel name … message`, and a text.

    `recipient` stands before the name of whom a message is for; one that begins with `functions` is a call, whose text
    is a JSON object. `reasoning`: names of channels. `constrain`: a mark in headers that says the type of the text.
    """

    start: Annotated[str, Meta(min_length=1, max_length=128)]
    channel: Annotated[str, Meta(min_length=1, max_length=128)]
    message: Annotated[str, Meta(min_length=1, max_length=128)]
    recipient: Annotated[str, Meta(min_length=1, max_length=128)]
    functions: Annotated[str, Meta(min_length=1, max_length=128)]
    ends: tuple[Mark, ...]
    reasoning: tuple[Mark, ...] = ()
    constrain: Mark = ""


class Dialogue(_Strict, frozen=True):
    """The whole description: reasoning and calls by their marks, or channels, which hold both."""

    name: Mark  # datong/importer/dialogue/data/<name>.toml
    source: str  # where the format is known from
    reasoning: Reasoning | None = None
    tools: ToolCalls | None = None
    channels: Channels | None = None

    @property
    def calls(self) -> bool:
        """Does the model have a form of tool calls?"""
        return self.tools is not None or self.channels is not None

    def marks(self) -> list[str]:
        """Every mark that an answer may hold."""
        found: list[str] = []
        if self.reasoning:
            found += [self.reasoning.open, self.reasoning.close]
        if self.tools:
            tools, pairs = self.tools, self.tools.pairs
            found += [*tools.section, *tools.call, *tools.between, *(tools.name or ())]
            found += [*pairs.key, *pairs.value, *pairs.typed] if pairs else []
        if form := self.channels:
            found += [form.start, form.channel, form.message, *form.ends, form.constrain]
        return [mark for mark in dict.fromkeys(found) if mark]


def problem(dialogue: Dialogue) -> str | None:
    """What is wrong with a description whose fields are each right; None: nothing."""
    tools = dialogue.tools
    if dialogue.channels is not None and (tools is not None or dialogue.reasoning is not None):
        return "`channels` hold reasoning and calls, `reasoning` and `tools` should be absent"
    if dialogue.channels is not None and not all(dialogue.channels.ends):
        return "`channels.ends` should have marks that are not empty"
    if tools is None:
        return None
    if not (tools.section[0] or tools.call[0] or tools.bare):
        return "`tools` should have a mark where calls begin: `section`, `call` or `bare`"
    if (tools.name is None) != bool(tools.fields):
        return "`tools` should have either `name` or `fields`"
    if tools.pairs is not None and tools.name is None:
        return "`tools` with `pairs` should have `name`"
    if tools.pairs is not None and not (tools.pairs.key[0] and tools.pairs.key[1] and tools.pairs.value[1]):
        return "`tools.pairs` should have both marks of `key` and the second of `value`"
    return None


def encode(dialogue: Dialogue) -> bytes:
    """The bytes of `dialogue.json`: deterministic, what is absent left out."""
    built = msgspec.to_builtins(dialogue)
    plain = {key: value for key, value in built.items() if value is not None}
    return msgspec.json.format(msgspec.json.encode(plain, order="sorted"), indent=2) + b"\n"


def decode(data: bytes, where: str = NAME) -> Dialogue:
    """Read `dialogue.json`. Raises PackageError with the place."""
    if len(data) > MAX_BYTES:
        raise PackageError(where, f"the file should have at most {MAX_BYTES} bytes, it has {len(data)}")
    try:
        found = msgspec.json.decode(data, type=Dialogue)
    except (msgspec.DecodeError, RecursionError) as error:
        raise PackageError(where, f"the file should describe a dialogue as spec/dialogue.py says: {error}") from None
    if text := problem(found):
        raise PackageError(where, text)
    return found
