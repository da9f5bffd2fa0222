"""Tools for models whose template does not know any: they are described in the system message, calls come as JSON.

Models that were trained on tools say so in their package (dialogue.json), and their own template is used instead.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from datong.spec.dialogue import Dialogue, Reasoning, ToolCalls

CALL = ("<tool_call>", "</tool_call>")  # as in Hermes and Qwen: the most widely learnt form
RESPONSE = ("<tool_response>", "</tool_response>")
_FORM = ToolCalls(call=CALL, fields=(("name", "arguments"),))


def generic(reasoning: Reasoning | None) -> Dialogue:
    """The description of what `described` asks the model for."""
    return Dialogue(name="generic", source="datong/server/tools.py", reasoning=reasoning, tools=_FORM)


def described(messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages without tools: the tools' schemas in the system message, earlier calls and results as texts."""
    system, rest = "", list(messages)
    if rest and rest[0]["role"] == "system":
        system, rest = f"{rest[0]['content']}\n\n", rest[1:]
    schemas = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
    text = (
        f"{system}You can call these functions, given as JSON schemas:\n{schemas}\n\n"
        f"To call one, answer with its name and arguments as JSON between marks:\n"
        f'{CALL[0]}\n{{"name": "…", "arguments": {{…}}}}\n{CALL[1]}'
    )
    return [{"role": "system", "content": text}, *(_plain(message) for message in rest)]


def _plain(message: Mapping[str, Any]) -> dict[str, Any]:
    if message["role"] == "tool":
        return {"role": "user", "content": f"{RESPONSE[0]}\n{message['content']}\n{RESPONSE[1]}"}
    calls = [
        f"{CALL[0]}\n{json.dumps({key: call['function'][key] for key in ('name', 'arguments')}, ensure_ascii=False)}\n"
        f"{CALL[1]}"
        for call in message.get("tool_calls", ())
    ]
    texts = [text for text in (message["content"], *calls) if text]
    return {"role": message["role"], "content": "\n".join(texts)}
