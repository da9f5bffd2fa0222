"""`/v1/chat/completions` and `/v1/models` through the official client, against the model itself."""

from __future__ import annotations

import threading
from typing import Any

import openai
import pytest

ASK = [{"role": "user", "content": "Say something."}]


def test_models(client: Any) -> None:
    (card,) = client.models.list().data
    assert card.id == "tiny" and card.object == "model" and card.context_length == 256 and card.evidence == "measured"
    assert client.models.retrieve("tiny").id == "tiny"


def test_greedy_is_the_offline_answer(client: Any, offline: Any) -> None:
    want = offline.generate(ASK, max_tokens=20)
    for limit in ({"max_tokens": 20}, {"max_completion_tokens": 20}):
        got = client.chat.completions.create(model="tiny", messages=ASK, temperature=0, **limit)
        (choice,) = got.choices
        assert choice.message.content == want.text and choice.message.role == "assistant"
        assert choice.finish_reason == "length" and choice.logprobs is None
        assert got.usage.prompt_tokens == want.prompt_tokens and got.usage.completion_tokens == 20
        assert got.usage.total_tokens == want.prompt_tokens + 20


def test_a_stream_is_the_same_text(client: Any) -> None:
    whole = client.chat.completions.create(model="tiny", messages=ASK, temperature=0, max_tokens=20, n=2)
    chunks = list(
        client.chat.completions.create(
            model="tiny",
            messages=ASK,
            temperature=0,
            max_tokens=20,
            n=2,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    for i in range(2):
        own = [c.choices[0] for c in chunks if c.choices and c.choices[0].index == i]
        assert own[0].delta.role == "assistant"
        assert "".join(c.delta.content or "" for c in own) == whole.choices[i].message.content
        assert [c.finish_reason for c in own if c.finish_reason] == ["length"] and own[-1].finish_reason
    assert chunks[-1].usage.completion_tokens == 40 and chunks[-1].choices == []
    assert len({c.id for c in chunks}) == 1


def test_logprobs(client: Any, offline: Any) -> None:
    want = offline.generate(ASK, max_tokens=6, logprobs=2)
    ask: dict[str, Any] = {"model": "tiny", "messages": ASK, "temperature": 0, "max_tokens": 6}
    got = client.chat.completions.create(logprobs=True, top_logprobs=2, **ask).choices[0].logprobs.content
    assert [one.logprob for one in got] == pytest.approx([one.logprob for one in want.logprobs], abs=1e-6)
    assert all(len(one.top_logprobs) == 2 and one.top_logprobs[0].logprob >= one.logprob for one in got)
    assert bytes(b for one in got for b in one.bytes).decode(errors="replace") == want.text
    streamed = client.chat.completions.create(logprobs=True, top_logprobs=2, stream=True, **ask)
    pieces = [p for c in streamed if c.choices[0].logprobs for p in c.choices[0].logprobs.content]
    assert [p.token for p in pieces] == [one.token for one in got]


def test_parts_roles_and_earlier_calls(client: Any, live: Any) -> None:
    plain = [{"role": "system", "content": "Be brief."}, *ASK]
    parts = [
        {"role": "developer", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]},
        *ASK,
    ]
    tokens = [live.post("/tokenize", json={"messages": m}).json()["tokens"] for m in (plain, parts)]
    assert tokens[0] == tokens[1]
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    messages = [
        *ASK,
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "2"},
    ]
    assert client.chat.completions.create(model="tiny", messages=messages, max_tokens=2).choices


@pytest.mark.parametrize(
    ("ask", "code", "param"),
    [
        ({"messages": []}, "invalid_type", "messages"),
        ({"messages": [{"role": "king", "content": "a"}]}, "invalid_value", "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "invalid_value", "messages[0].content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "unsupported_parameter",
            "messages[0].content[0].type",
        ),
        ({"top_logprobs": 2}, "invalid_value", "top_logprobs"),
        ({"max_tokens": 0}, "invalid_type", "max_tokens"),
        ({"audio": {"voice": "x"}}, "unsupported_parameter", "audio"),
        ({"tools": [{"type": "web_search"}]}, "unsupported_parameter", "tools[0].type"),
        ({"tool_choice": "required"}, "invalid_value", "tool_choice"),
        ({"extra_body": {"temprature": 1}}, "unknown_parameter", "temprature"),
        ({"extra_body": {"timeout_s": 0}}, "invalid_type", "timeout_s"),
        ({"messages": [{"role": "user", "content": "x" * 300}]}, "context_length_exceeded", "messages"),
    ],
)
def test_what_is_wrong_is_named(client: Any, ask: dict[str, Any], code: str, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**{"model": "tiny", "messages": ASK, **ask})
    assert (caught.value.code, caught.value.param) == (code, param)
    assert caught.value.type == "invalid_request_error" and caught.value.message


def test_an_unknown_model_is_404(client: Any) -> None:
    for name in ("gpt-4", "../../etc/passwd", "", "tiny/../tiny"):
        with pytest.raises(openai.NotFoundError) as caught:
            client.chat.completions.create(model=name, messages=ASK)
        assert caught.value.code == "model_not_found" and caught.value.param == "model"


def test_greedy_under_load_is_the_offline_answer(client: Any, offline: Any) -> None:
    """With 16 others of other lengths and settings in the same batches; f32 weights, f32 cache."""
    prompts = [[{"role": "user", "content": f"Number {i}: " + "blah " * (i % 7)}] for i in range(17)]
    got: dict[int, str] = {}

    def ask(i: int) -> None:
        settings: dict[str, Any] = {"temperature": 0} if i == 0 else {"temperature": 1.2, "seed": i}
        answer = client.chat.completions.create(model="tiny", messages=prompts[i], max_tokens=60, **settings)
        got[i] = answer.choices[0].message.content

    threads = [threading.Thread(target=ask, args=(i,)) for i in (*range(1, 17), 0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got[0] == offline.generate(prompts[0], max_tokens=60).text
    for i in range(1, 17):
        assert got[i] == offline.generate(prompts[i], max_tokens=60, temperature=1.2, seed=i).text
