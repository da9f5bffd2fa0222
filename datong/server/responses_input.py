"""A request of the Responses API as one of the chat API."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from datong.server.errors import ApiError, invalid, unsupported
from datong.server.schemas import ChatRequest, ResponsesRequest

Json = dict[str, Any]
LOGPROBS = "message.output_text.logprobs"
_NOT_HERE = ("previous_response_id", "conversation", "prompt")


def to_chat(body: ResponsesRequest) -> tuple[ChatRequest, list[str]]:
    """The request, and which field each of its messages was made from. Raises ApiError 400 naming the field."""
    for name in _NOT_HERE:
        if getattr(body, name) is not None:
            raise unsupported(name, f"{name} is not supported: nothing is stored here, send the earlier items")
    if body.background:
        raise unsupported("background", "background is not supported")
    reasoning = body.reasoning or {}
    messages, origins = _messages(body)
    chat = ChatRequest(
        model=body.model,
        messages=messages,
        max_completion_tokens=body.max_output_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        seed=body.seed,
        tools=None if body.tools is None else [_tool(tool, i) for i, tool in enumerate(body.tools)],
        tool_choice=_choice(body.tool_choice),
        parallel_tool_calls=body.parallel_tool_calls,
        response_format=_format(body.text),
        reasoning_effort=reasoning.get("effort"),
        logprobs=body.top_logprobs is not None or LOGPROBS in (body.include or ()),
        top_logprobs=body.top_logprobs,
        priority=body.priority,
        timeout_s=body.timeout_s,
    )
    return chat, origins


def renamed(error: ApiError, origins: Sequence[str]) -> ApiError:
    """An error about the request that `to_chat` made, in the words of the one that came."""
    if error.param is None:
        return error
    name = re.sub(r"^messages\[(\d+)\]", lambda found: origins[int(found[1])], error.param)
    name = re.sub(r"^messages$", "input", name)
    name = re.sub(r"^response_format(\.json_schema)?", "text.format", name)
    name = re.sub(r"^(tools\[\d+\])\.function(?=\.|$)", r"\1", name)
    if error.param.endswith(".function"):
        name += ".name"
    text = error.message.replace(error.param, name)
    return ApiError(error.status, text, code=error.code, param=name, kind=error.kind, headers=error.headers)


def _messages(body: ResponsesRequest) -> tuple[list[Json], list[str]]:
    found: list[Json] = [{"role": "system", "content": body.instructions}] if body.instructions else []
    origins = ["instructions"] * len(found)
    if isinstance(body.input, str):
        return [*found, {"role": "user", "content": body.input}], [*origins, "input"]
    for i, item in enumerate(body.input):
        _add(found, item, f"input[{i}]")
        origins += [f"input[{i}]"] * (len(found) - len(origins))
    if not found:
        raise invalid("input", "input should hold at least one item")
    return found, origins


def _add(found: list[Json], item: Mapping[str, Any], at: str) -> None:
    """One item; neighbouring calls are one message of the assistant."""
    kind = item.get("type", "message")
    if kind == "message":
        found.append({"role": item.get("role"), "content": item.get("content")})
    elif kind == "function_call":
        function = {"name": item.get("name"), "arguments": item.get("arguments")}
        call = {"id": item.get("call_id"), "type": "function", "function": function}
        if not found or found[-1]["role"] != "assistant":
            found.append({"role": "assistant", "content": None})
        found[-1].setdefault("tool_calls", []).append(call)
    elif kind == "function_call_output":
        output = item.get("output")
        found.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": output})
    elif kind != "reasoning":  # earlier thoughts are not shown to the model again
        raise unsupported(f"{at}.type", f"{at}.type `{str(kind)[:40]}` is not supported")


def _tool(tool: Mapping[str, Any], i: int) -> Json:
    if tool.get("type") != "function":
        raise unsupported(
            f"tools[{i}].type", f"tools[{i}].type should be `function`, got `{str(tool.get('type'))[:40]}`"
        )
    function = {key: tool[key] for key in ("name", "description", "parameters") if tool.get(key) is not None}
    return {"type": "function", "function": function}


def _choice(choice: Any) -> Any:
    if isinstance(choice, Mapping):
        return {"type": choice.get("type"), "function": {"name": choice.get("name")}}
    return choice


def _format(text: Mapping[str, Any] | None) -> Json | None:
    wanted = (text or {}).get("format")
    if wanted is None:
        return None
    if not isinstance(wanted, Mapping):
        raise invalid("text.format", "text.format should be an object with a `type`")
    if wanted.get("type") == "json_schema":
        return {"type": "json_schema", "json_schema": {k: v for k, v in wanted.items() if k != "type"}}
    return dict(wanted)
