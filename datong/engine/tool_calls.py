"""Tool calls in the text of an answer, read by literal marks (spec/dialogue.py).

A call's text is taken up to the first closing mark at which it is whole: marks inside JSON strings or inside an
argument do not end it. Arguments become one JSON object, whatever the format.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datong.spec.dialogue import Pairs, ToolCalls

_SPACE = " \t\r\n"


def _refuse(constant: str) -> None:
    """NaN and Infinity are no JSON."""
    raise ValueError(constant)


_JSON = json.JSONDecoder(parse_constant=_refuse)


@dataclass(frozen=True, slots=True)
class ToolCall:
    """`arguments` is the text of a JSON object."""

    name: str
    arguments: str


class _IncompleteError(Exception):
    """The text is no whole call."""


class Calls:
    """Reads what follows the opening mark. `rest`: after the end, text that was no call after all."""

    def __init__(self, form: ToolCalls, tools: Sequence[Mapping[str, Any]]) -> None:
        self._form, self._schemas = form, _schemas(tools)
        self.open, self.bare = form.section[0] or form.call[0], form.bare
        self._in_call, self._looked = False, 0
        self._ready: list[ToolCall] = []
        self.rest = ""

    def start(self) -> None:
        """The opening mark has been read."""
        self._in_call, self._looked, self.rest = not self._form.section[0], 0, ""

    def push(self, text: str) -> tuple[ToolCall | None, str, bool]:
        """One step through `text`: a call that is whole, the text that is left, and whether the calls have ended."""
        if self._ready:
            return self._ready.pop(0), text, not self._ready and not self._form.section[0]
        if self._in_call:
            return self._body(text)
        return self._section(text)

    def finish(self, text: str) -> list[ToolCall]:
        """The calls in what is left at the end of an answer, where a closing mark may be missing; sets `rest`."""
        found, self._ready, self.rest = self._ready, [], ""
        if self._in_call:
            try:
                return found + self._parse(text)
            except _IncompleteError:
                self.rest = self._form.call[0] + text
                return found
        while text.strip(_SPACE + ";,"):
            try:
                calls, text = self._inline(text.lstrip(_SPACE + ";,"))
                found += calls
            except _IncompleteError:
                self.rest = text if self.bare else (self._form.section[0] + text) * (not found) or text
                break
        return found

    def _section(self, text: str) -> tuple[ToolCall | None, str, bool]:
        """Between calls."""
        form = self._form
        text = text.lstrip(_SPACE + ";,")
        for mark in form.between:
            text = text.removeprefix(mark).lstrip(_SPACE)
        if form.section[1] and text.startswith(form.section[1]):
            return None, text[len(form.section[1]) :], True
        if form.call[0]:
            at = text.find(form.call[0])
            end = text.find(form.section[1]) if form.section[1] else -1
            if at >= 0 and (end < 0 or at < end):  # what stands before it belongs to no call
                self._in_call, self._looked = True, 0
                return self.push(text[at + len(form.call[0]) :])
            return (None, text[end + len(form.section[1]) :], True) if end >= 0 else (None, text, False)
        try:
            self._ready, text = self._inline(text)
        except _IncompleteError:
            end = text.find(form.section[1]) if form.section[1] else -1
            if end >= 0 and not text.startswith(("{", "[")):
                self.rest = text[:end]
                return None, text[end + len(form.section[1]) :], True
            return None, text, False
        return (self._ready.pop(0) if self._ready else None), text, False

    def _body(self, text: str) -> tuple[ToolCall | None, str, bool]:
        """Inside a call: is it whole at one of its closing marks?"""
        close, alone = self._form.call[1], not self._form.section[0]
        while (at := text.find(close, self._looked)) >= 0:
            self._looked = at + 1
            try:
                self._ready = self._parse(text[:at])
            except _IncompleteError:
                continue
            self._in_call = False
            first = self._ready.pop(0)
            return first, text[at + len(close) :], alone and not self._ready
        self._looked = max(0, len(text) - len(close) + 1)
        return None, text, False

    def _inline(self, text: str) -> tuple[list[ToolCall], str]:
        """One JSON value at the beginning of `text`, and what follows it."""
        try:
            value, end = _JSON.raw_decode(text)
        except (ValueError, RecursionError):
            raise _IncompleteError from None
        return self._from_json(value), text[end:]

    def _parse(self, body: str) -> list[ToolCall]:
        """The calls in the text of one; several where JSON lists them."""
        form = self._form
        if form.name is None:
            try:
                return self._from_json(_JSON.decode(body))
            except (ValueError, RecursionError):
                raise _IncompleteError from None
        name, rest = self._name(body, form.name, form.pairs)
        schema = self._schemas.get(name, {})
        if form.pairs is not None:
            arguments: Any = self._members(rest, form.pairs, schema)
        else:
            arguments = self._object(rest)
        return [ToolCall(name, _text(arguments))]

    @staticmethod
    def _members(text: str, pairs: Pairs, schema: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return _Reader(text, pairs).members(schema)
        except RecursionError:
            raise _IncompleteError from None

    @staticmethod
    def _name(body: str, marks: tuple[str, str], pairs: Pairs | None) -> tuple[str, str]:
        at = body.find(marks[0])
        if at < 0:
            raise _IncompleteError
        at += len(marks[0])
        if marks[1]:
            end = body.find(marks[1], at)
            if end < 0:
                raise _IncompleteError
            name, rest = body[at:end], body[end + len(marks[1]) :]
        else:
            end = body.find(pairs.key[0], at) if pairs else -1
            name, rest = (body[at:], "") if end < 0 else (body[at:end], body[end:])
        if not (name := name.strip()) or any(c in name for c in "<>{}\n"):
            raise _IncompleteError
        return name, rest

    @staticmethod
    def _object(text: str) -> dict[str, Any]:
        """The JSON object at the beginning of `text`; nothing at all is an empty one."""
        text = text.strip()
        if not text:
            return {}
        try:
            value, _ = _JSON.raw_decode(text)
        except (ValueError, RecursionError):
            raise _IncompleteError from None
        if not isinstance(value, dict):
            raise _IncompleteError
        return value

    def _from_json(self, value: Any) -> list[ToolCall]:
        found = [self._one(item) for item in (value if isinstance(value, list) else [value])]
        if not found:
            raise _IncompleteError
        return found

    def _one(self, value: Any) -> ToolCall:
        if isinstance(value, dict):
            for name, arguments in self._form.fields:
                if isinstance(value.get(name), str) and arguments in value:
                    return ToolCall(value[name], _text(_unquoted(value[arguments])))
            name = self._form.fields[0][0]
            if isinstance(value.get(name), str) and len(value) == 1:
                return ToolCall(value[name], "{}")
        raise _IncompleteError


class _Reader:
    """Arguments written as pairs."""

    def __init__(self, text: str, pairs: Pairs) -> None:
        self._text, self._pairs, self._at = text, pairs, 0

    def members(self, schema: Mapping[str, Any]) -> dict[str, Any]:
        """Pairs to the end of the text."""
        found: dict[str, Any] = {}
        while (at := self._text.find(self._pairs.key[0], self._at)) >= 0:
            self._at = at + len(self._pairs.key[0])
            key = self._until(self._pairs.key[1])
            found[key] = self._value(key, _member(schema, key))
        return found

    def _value(self, key: str, schema: Mapping[str, Any]) -> Any:
        pairs, close = self._pairs, self._pairs.value[1].replace("{key}", key)
        kind = self._open()
        nested = pairs.nested and self._skip_space().startswith(pairs.key[0], self._at)
        if nested and not self._text.startswith(close, self._at):
            return self._nested(schema, close)
        text = self._until(close)
        if pairs.newline:
            text = text.removeprefix("\n").removesuffix("\n")
        return text if kind == "string" else _typed(text, {} if kind == "json" else schema)

    def _open(self) -> str:
        """Read past the mark before a value; what it says of the type."""
        for mark, kind in self._pairs.typed.items():
            if self._text.startswith(mark, self._at):
                self._at += len(mark)
                return kind
        mark = self._pairs.value[0]
        if mark:
            if not self._skip_space().startswith(mark, self._at):
                raise _IncompleteError
            self._at += len(mark)
        elif self._pairs.typed:
            raise _IncompleteError
        return ""

    def _nested(self, schema: Mapping[str, Any], close: str) -> Any:
        items: list[Any] = []
        found: dict[str, Any] = {}
        while not self._skip_space().startswith(close, self._at):
            if not self._text.startswith(self._pairs.key[0], self._at):
                raise _IncompleteError
            self._at += len(self._pairs.key[0])
            key = self._until(self._pairs.key[1])
            value = self._value(key, _member(schema, key))
            items.append(value)
            found[key] = value
        self._at += len(close)
        return items if set(found) == {"item"} else found

    def _until(self, mark: str) -> str:
        end = self._text.find(mark, self._at)
        if end < 0:
            raise _IncompleteError
        found, self._at = self._text[self._at : end], end + len(mark)
        return found

    def _skip_space(self) -> str:
        while self._text[self._at : self._at + 1] in tuple(_SPACE):
            self._at += 1
        return self._text


def _schemas(tools: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Function name -> JSON schema of its arguments, of tools in OpenAI's form, nested or flat."""
    found: dict[str, Mapping[str, Any]] = {}
    for tool in tools:
        function = tool.get("function", tool)
        if isinstance(function, Mapping) and isinstance(function.get("name"), str):
            parameters = function.get("parameters")
            found[function["name"]] = parameters if isinstance(parameters, Mapping) else {}
    return found


def _member(schema: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The schema of one property, or of a list's items; empty where none is stated."""
    properties = schema.get("properties")
    found = properties.get(key) if isinstance(properties, Mapping) else None
    if found is None and key == "item":
        found = schema.get("items")
    return found if isinstance(found, Mapping) else {}


def _typed(text: str, schema: Mapping[str, Any]) -> Any:
    """An argument's text as a JSON value: text where the schema says so, else JSON where it is some."""
    kinds = schema.get("type")
    kinds = [kinds] if isinstance(kinds, str) else kinds if isinstance(kinds, list) else []
    if "string" in kinds and not (text == "null" and "null" in kinds):
        return text
    if not kinds and isinstance(schema.get("enum"), list) and text in schema["enum"]:
        return text
    try:
        return _JSON.decode(text)
    except (ValueError, RecursionError):
        lowered = text.strip().lower()
        return lowered == "true" if "boolean" in kinds and lowered in ("true", "false") else text


def _unquoted(arguments: Any) -> Any:
    """Arguments that came as the text of JSON, as some models write them."""
    if isinstance(arguments, str):
        try:
            return _JSON.decode(arguments)
        except (ValueError, RecursionError):
            return arguments
    return {} if arguments is None else arguments


def _text(arguments: Any) -> str:
    if not isinstance(arguments, dict):
        raise _IncompleteError
    return json.dumps(arguments, ensure_ascii=False)
