"""Messages of the OpenAI API as chat templates read them: contents are texts, arguments are objects."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from datong.server.errors import ApiError, invalid, unsupported

ROLES = {"developer": "system", "function": "tool"}  # newer and older names
KNOWN = ("system", "user", "assistant", "tool", *ROLES)


def for_template(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Checked copies. Raises ApiError 400 naming the field."""
    return [_one(message, f"messages[{i}]") for i, message in enumerate(messages)]


def _one(message: Mapping[str, Any], at: str) -> dict[str, Any]:
    role = message.get("role")
    if role not in KNOWN:
        raise invalid(f"{at}.role", f"{at}.role should be one of {', '.join(KNOWN)}, got `{str(role)[:40]}`")
    found = {**message, "role": ROLES.get(role, role), "content": _content(message.get("content"), f"{at}.content")}
    if calls := message.get("tool_calls"):
        found["tool_calls"] = _calls(calls, f"{at}.tool_calls")
    elif message.get("content") is None and role != "assistant":
        raise invalid(f"{at}.content", f"{at}.content should be a text, it is missing")
    return found


def _content(content: object, at: str) -> str:
    """A text; parts of type `text` are joined."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise invalid(at, f"{at} should be a text or a list of parts, got `{type(content).__name__}`")
    texts = []
    for i, part in enumerate(content):
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind not in ("text", "input_text", "output_text"):
            raise unsupported(f"{at}[{i}].type", f"{at}[{i}].type should be `text`, got `{str(kind)[:40]}`")
        if not isinstance(part.get("text"), str):
            raise invalid(f"{at}[{i}].text", f"{at}[{i}].text should be a text")
        texts.append(part["text"])
    return "".join(texts)


def _calls(calls: object, at: str) -> list[dict[str, Any]]:
    """Earlier calls; their arguments come as JSON text and templates read the object."""
    if not isinstance(calls, list):
        raise invalid(at, f"{at} should be a list")
    found = []
    for i, call in enumerate(calls):
        function = call.get("function") if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise invalid(f"{at}[{i}]", f"{at}[{i}].function should have a `name` and `arguments`")
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments or "{}")
            except (ValueError, RecursionError):
                raise invalid(f"{at}[{i}].function.arguments", f"{at}[{i}].function.arguments should be JSON") from None
        found.append({**call, "function": {**function, "arguments": arguments or {}}})
    return found


def check_tools(tools: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Function tools. Raises ApiError 400 naming the field."""
    found = []
    for i, tool in enumerate(tools):
        at = f"tools[{i}]"
        if tool.get("type") != "function":
            raise unsupported(f"{at}.type", f"{at}.type should be `function`, got `{str(tool.get('type'))[:40]}`")
        function = tool.get("function")
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"]:
            raise invalid(f"{at}.function", f"{at}.function should have a `name`")
        parameters = function.get("parameters")
        if parameters is not None and not isinstance(parameters, Mapping):
            raise invalid(f"{at}.function.parameters", f"{at}.function.parameters should be a JSON schema")
        found.append(dict(tool))
    return found


def tools_asked(tools: Sequence[Mapping[str, Any]] | None, choice: object) -> list[dict[str, Any]]:
    """The tools that the model may see. Raises ApiError 400 for a choice that names none of them."""
    checked = check_tools(tools or ())
    if isinstance(choice, Mapping):
        function = choice.get("function")
        name = function.get("name") if isinstance(function, Mapping) else None
        if choice.get("type") != "function" or name not in [tool["function"]["name"] for tool in checked]:
            raise invalid("tool_choice", f"tool_choice should name one of the tools, got `{str(name)[:40]}`")
    elif choice == "required" and not checked:
        raise ApiError(400, "tool_choice is `required`, tools are missing", code="invalid_value", param="tool_choice")
    return [] if choice == "none" else checked
