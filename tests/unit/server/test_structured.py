"""Grammars of forced calls, for the forms that packages describe."""

from __future__ import annotations

import pytest

from datong.server.errors import ApiError
from datong.server.structured import call_grammar
from datong.server.tools import described, generic
from datong.spec.dialogue import ToolCalls

TOOLS = [{"type": "function", "function": {"name": name}} for name in ("f", "g")]


def valid(grammar: str, text: str) -> bool:
    """Does the text match the whole grammar?"""
    import llguidance
    from llguidance._tokenizer import TokenizerWrapper

    class Bytes:
        eos_token_id, bos_token_id, special_token_ids = 256, None, (256,)
        tokens = (*(bytes([i]) for i in range(256)), b"</s>")

        def __call__(self, text: bytes) -> list[int]:
            return list(text)

    matcher = llguidance.LLMatcher(llguidance.LLTokenizer(TokenizerWrapper(Bytes())), grammar)
    assert not matcher.get_error()
    data = list(text.encode())
    return matcher.try_consume_tokens(data) == len(data) and matcher.is_accepting()


ONE = '{"name": "f", "arguments": {}}'
TWO = '{"name": "g", "arguments": {}}'


def test_hermes() -> None:
    form = generic(None).tools
    many, single = (call_grammar(form, TOOLS, which, None) for which in (True, False))
    first, second = (f"<tool_call>\n{body}\n</tool_call>" for body in (ONE, TWO))
    assert valid(many, first) and valid(many, f"{first}\n{second}") and valid(many, first + second)
    assert valid(single, first) and not valid(single, f"{first}\n{second}")
    for wrong in (ONE, "<tool_call>{}</tool_call>", first.replace('"f"', '"h"'), first.replace("{}", '{"a": 1}')):
        assert not valid(many, wrong)


def test_a_section_without_marks_for_calls() -> None:
    form = ToolCalls(section=("<calls>", "</calls>"), fields=(("name", "parameters"),))
    body = ONE.replace("arguments", "parameters")
    assert valid(call_grammar(form, TOOLS, True, None), f"<calls>{body}</calls>")


def test_forms_that_are_not_json_cannot_be_forced() -> None:
    for form in (None, ToolCalls(call=("<f>", "</f>"), name=("<n>", "</n>"))):
        with pytest.raises(ApiError, match="tool_choice can be forced only"):
            call_grammar(form, TOOLS, True, None)


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
