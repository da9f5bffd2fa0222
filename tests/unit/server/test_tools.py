"""Tools for models that know none."""

from __future__ import annotations

from datong.server.tools import described

TOOLS = [{"type": "function", "function": {"name": name}} for name in ("f", "g")]


def test_tools_are_described_to_models_that_know_none() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"é": 1}}}
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "7"},
    ]
    system, user, assistant, tool = described(messages, TOOLS)
    assert system["content"].startswith("Be kind.\n\n") and '{"name": "g"}' in system["content"]
    assert user == messages[1]
    assert assistant["content"] == '<tool_call>\n{"name": "f", "arguments": {"é": 1}}\n</tool_call>'
    assert tool == {"role": "user", "content": "<tool_response>\n7\n</tool_response>"}
