"""`response_format` and forced tool calls: from the request to guides, one per choice.

https://platform.openai.com/docs/guides/structured-outputs; the types `regex` and `grammar` are beyond OpenAI's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from datong.engine.guide import AfterReasoning, Guide
from datong.engine.model import Model
from datong.engine.tokenizer import Tokenizer
from datong.errors import InvalidRequest
from datong.server.errors import ApiError, invalid, unsupported
from datong.spec.dialogue import Dialogue, ToolCalls

TYPES = ("text", "json_object", "json_schema", "regex", "grammar")
Make = Callable[[], Guide]


def format_guides(model: Model, wanted: Mapping[str, Any] | None, count: int, prompt: str = "") -> list[Guide | None]:
    """Guides for a `response_format`; `prompt` is the text that the answer continues. Raises ApiError 400."""
    make = _maker(model, wanted)
    return [None] * count if make is None else _guides(model, make, count, prompt, "response_format")


def call_guides(
    model: Model, dialogue: Dialogue, tools: Sequence[Mapping[str, Any]], many: bool, count: int, prompt: str
) -> list[Guide | None]:
    """Guides that make the answer one call of these tools, or several. Raises ApiError 400."""
    grammar = call_grammar(dialogue.tools, tools, many, model.tokenizer)
    return _guides(model, lambda: model.grammars.lark(grammar), count, prompt, "tools")


def _guides(model: Model, make: Make, count: int, prompt: str, param: str) -> list[Guide | None]:
    found: list[Guide | None] = []
    reasoning = model.dialogue.reasoning if model.dialogue else None
    inside = reasoning is not None and prompt.rstrip().endswith(reasoning.open)
    for _ in range(count):
        try:
            guide = make()
        except InvalidRequest as error:
            raise ApiError(400, error.message, code="invalid_value", param=param) from None
        found.append(AfterReasoning(guide, model.tokenizer, reasoning.close) if inside and reasoning else guide)
    return found


def _maker(model: Model, wanted: Mapping[str, Any] | None) -> Make | None:
    kind = (wanted or {"type": "text"}).get("type")
    if kind not in TYPES:
        raise invalid("response_format.type", f"response_format.type should be one of {', '.join(TYPES)}")
    if kind == "text" or wanted is None:
        return None
    if kind == "json_object":
        return lambda: model.grammars.json_schema({"type": "object"})
    if kind == "json_schema":
        schema = schema_of(wanted)
        return lambda: model.grammars.json_schema(schema)
    text = wanted.get(kind)
    if not isinstance(text, str):
        raise invalid(f"response_format.{kind}", f"response_format.{kind} should be a text")
    return (lambda: model.grammars.regex(text)) if kind == "regex" else (lambda: model.grammars.lark(text))


def schema_of(wanted: Mapping[str, Any]) -> Mapping[str, Any]:
    """Of `{"type": "json_schema", "json_schema": {"name", "schema", "strict"}}`. Raises ApiError 400."""
    described = wanted.get("json_schema")
    if not isinstance(described, Mapping):
        raise invalid("response_format.json_schema", "response_format.json_schema should hold `name` and `schema`")
    schema = described.get("schema", {"type": "object"})
    if not isinstance(schema, Mapping):
        raise invalid("response_format.json_schema.schema", "response_format.json_schema.schema should be an object")
    return schema


def call_grammar(
    form: ToolCalls | None, tools: Sequence[Mapping[str, Any]], many: bool, tokenizer: Tokenizer | None
) -> str:
    """Calls as the model writes them, in llguidance's Lark. Raises ApiError 400 where calls are not JSON."""
    if form is None or form.name is not None or form.pairs is not None or not form.fields:
        raise unsupported("tool_choice", "tool_choice can be forced only for models that write calls as JSON")
    name, arguments = form.fields[0]
    calls = [_call_schema(name, arguments, tool["function"]) for tool in tools]
    schema = calls[0] if len(calls) == 1 else {"anyOf": calls}
    (section, section_end), (call, call_end) = form.section, form.call
    one = " ".join(filter(None, [_mark(call, tokenizer), "blank body blank", _mark(call_end, tokenizer)]))
    every = "one (blank one)*" if many and (call or form.between) else "one"
    start = " ".join(filter(None, [_mark(section, tokenizer), every, _mark(section_end, tokenizer)]))
    return f'start: {start}\none: {one}\nblank: "\\n"?\nbody: %json {json.dumps(schema)}\n'


def _mark(mark: str, tokenizer: Tokenizer | None) -> str:
    """A literal; by its number where it is a token of its own."""
    if not mark:
        return ""
    number = tokenizer.inner.token_to_id(mark) if tokenizer else None
    return json.dumps(mark) if number is None else f"<[{number}]>"


def _call_schema(name: str, arguments: str, function: Mapping[str, Any]) -> dict[str, Any]:
    parameters = function.get("parameters") or {"type": "object", "properties": {}, "additionalProperties": False}
    return {
        "type": "object",
        "properties": {name: {"const": function["name"]}, arguments: parameters},
        "required": [name, arguments],
        "additionalProperties": False,
    }
