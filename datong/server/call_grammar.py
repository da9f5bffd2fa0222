"""Grammars that force tool calls, in llguidance's Lark, from a package's description of how its model writes them.

One call, by the marks of spec/dialogue.py:

    call[0]  name[0] function name[1]  arguments  end  call[1]      arguments: pairs, or one JSON object
    call[0]  {"name": …, "arguments": …}  call[1]                   where `fields` names the keys

Arguments come in the order of the schema, required ones always. A text may be anything up to the mark that closes it;
other values are JSON of their schema.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from datong.engine.tokenizer import Tokenizer
from datong.server.errors import unsupported
from datong.spec.dialogue import Channels, Pairs, ToolCalls

NOTHING = {"type": "object", "properties": {}, "additionalProperties": False}
DEFINITIONS = ("$defs", "definitions")


def call_grammar(
    form: ToolCalls | None, tools: Sequence[Mapping[str, Any]], many: bool, tokenizer: Tokenizer | None
) -> str:
    """A grammar of one call of these tools, or of several. Raises ApiError 400 where the model has no form of calls."""
    if form is None:
        raise unsupported("tool_choice", "tool_choice can be forced only for models that write tool calls")
    writer = _Writer({} if tokenizer is None else added_tokens(tokenizer))
    if form.fields:
        body = " | ".join(_json(_whole(form, tool["function"])) for tool in tools)
    else:
        body = " | ".join(writer.function(form, tool["function"]) for tool in tools)
    one = writer.marks(form.call[0], "blank", writer.rule("body", body), "blank", form.call[1])
    writer.rules.append(f"one: {one}")
    every = "one (blank one)*" if many and (form.call[0] or form.between) else "one"
    start = writer.marks(form.section[0], "blank" if form.section[0] else "", every, "blank" if form.section[1] else "",
                         form.section[1])  # fmt: skip
    return "\n".join([f"start: {start}", *writer.rules, 'blank: "\\n"?', ""])


def channel_grammar(form: Channels, tools: Sequence[Mapping[str, Any]], tokenizer: Tokenizer | None) -> str:
    """A grammar of one call of these tools, for a prompt that ends with the beginning of a header."""
    writer = _Writer({} if tokenizer is None else added_tokens(tokenizer))
    calls = []
    for function in (tool["function"] for tool in tools):
        to = f"{form.recipient}{form.functions}{function['name']}"
        head = f"{form.channel}commentary {to} {form.constrain}json{form.message}"
        calls.append(writer.rule("call", " ".join([*writer.parts(head), _json(function.get("parameters") or NOTHING)])))
    return "\n".join([f"start: {' | '.join(calls)}", *writer.rules, ""])


def added_tokens(tokenizer: Tokenizer) -> dict[str, int]:
    """Texts that are tokens of their own, which a grammar can only name by number."""
    return {token.content: number for number, token in tokenizer.inner.get_added_tokens_decoder().items()}


def _json(schema: Any) -> str:
    return f"%json {json.dumps(schema)}"


def _shared(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """What references in the schema lead to: they count from its root, so every part that is taken out needs it."""
    return {key: parameters[key] for key in DEFINITIONS if key in parameters}


def _whole(form: ToolCalls, function: Mapping[str, Any]) -> dict[str, Any]:
    name, arguments = form.fields[0]
    parameters = function.get("parameters") or NOTHING
    return {
        **_shared(parameters),
        "type": "object",
        "properties": {name: {"const": function["name"]}, arguments: parameters},
        "required": [name, arguments],
        "additionalProperties": False,
    }


class _Writer:
    """Collects rules. `tokens`: as of added_tokens."""

    def __init__(self, tokens: Mapping[str, int]) -> None:
        self._tokens = tokens
        longest_first = sorted(filter(None, tokens), key=len, reverse=True)
        self._split = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None
        self.rules: list[str] = []

    def rule(self, kind: str, body: str) -> str:
        """A rule of its own; returns its name."""
        name = f"{kind}_{len(self.rules)}"
        self.rules.append(f"{name}: {body}")
        return name

    def parts(self, text: str) -> list[str]:
        """Literals and tokens."""
        found, at = [], 0
        for hit in self._split.finditer(text) if self._split else ():
            found += [json.dumps(text[at : hit.start()])] * (hit.start() > at) + [f"<[{self._tokens[hit[0]]}]>"]
            at = hit.end()
        return found + [json.dumps(text[at:])] * (at < len(text))

    def marks(self, first: str, *rest: str) -> str:
        """Marks at both ends, rules between; empty ones left out."""
        *rules, last = rest
        return " ".join([*self.parts(first), *filter(None, rules), *self.parts(last)])

    def function(self, form: ToolCalls, function: Mapping[str, Any]) -> str:
        """A rule for the calls of one function: name and arguments."""
        opened, closed = form.name or ("", "")
        parameters = function.get("parameters") or NOTHING
        arguments = self._members(form.pairs, parameters) if form.pairs else [_json(parameters)]
        head = self.parts(opened + function["name"] + closed)
        end = ["blank", *self.parts(form.end)] if form.end else []
        return self.rule("call", " ".join([*head, *arguments, *end]))

    def _members(self, pairs: Pairs, parameters: Mapping[str, Any]) -> list[str]:
        properties, required = parameters.get("properties") or {}, parameters.get("required") or ()
        found = []
        for key, schema in properties.items():
            named = {**_shared(parameters), **schema} if isinstance(schema, Mapping) else schema
            found.append(self._pair(pairs, key, named) + ("" if key in required else "?"))
        return found

    def _pair(self, pairs: Pairs, key: str, schema: Any) -> str:
        close = pairs.value[1].replace("{key}", key)
        line = "\n" if pairs.newline else ""
        text, choices = _is_text(schema), _choices(schema)
        opened = next((mark for mark, kind in pairs.typed.items() if (kind == "string") == text), pairs.value[0])
        head = self.parts(pairs.key[0] + key + pairs.key[1])
        head += ["blank"] * bool(opened and not pairs.typed) + self.parts(opened + line)
        if not text:
            value = [_json(schema), *self.parts(line + close)]
        elif choices:
            value = [f"({' | '.join(map(json.dumps, choices))})", *self.parts(line + close)]
        else:
            value = self._text(line + close)
        return self.rule("pair", " ".join(["blank", *head, *value]))

    def _text(self, close: str) -> list[str]:
        """Anything up to a mark. A token ends a text by itself; what a mark has before it goes with the text."""
        first, *rest = self.parts(close)
        if first.startswith("<["):
            return [self.rule("text", "/(?s:.*)/"), first, *rest]
        if rest:
            return [self.rule("text", f"/(?s:.*){_pattern(json.loads(first))}/"), *rest]
        name = f"text_{len(self.rules)}"
        self.rules.append(f"{name}[suffix={first}]: /(?s:.*)/")
        return [name]


def _pattern(text: str) -> str:
    return re.sub(r"([^\w\s<>=\"'])", r"\\\1", text).replace("\n", "\\n")


def _is_text(schema: Any) -> bool:
    """Is the value written as it is, without quotes? The reader takes it so (engine/tool_calls.py)."""
    if not isinstance(schema, Mapping):
        return False
    kinds = schema.get("type")
    return kinds == "string" or (isinstance(kinds, list) and "string" in kinds) or bool(not kinds and _choices(schema))


def _choices(schema: Any) -> list[str]:
    """The texts that a schema allows, where it lists them."""
    listed = [schema["const"]] if "const" in schema else schema.get("enum")
    return listed if isinstance(listed, list) and listed and all(isinstance(one, str) for one in listed) else []
