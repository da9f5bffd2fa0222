"""`response_format` and forced tool calls: from the request to guides, one per choice.

https://platform.openai.com/docs/guides/structured-outputs; the types `regex` and `grammar` are beyond OpenAI's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from datong.engine.guide import AfterReasoning, Guide
from datong.engine.model import Model
from datong.errors import InvalidRequest
from datong.server.call_grammar import call_grammar, channel_grammar
from datong.server.errors import ApiError, invalid
from datong.spec.dialogue import Dialogue

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
    if dialogue.channels:
        grammar = channel_grammar(dialogue.channels, tools, model.tokenizer)
    else:
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
