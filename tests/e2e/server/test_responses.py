"""`/v1/responses` through the official client."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import openai
import pytest

from datong.server.answers import ResponseObject

TIME = {"type": "function", "name": "time", "parameters": {"type": "object", "properties": {}}}
HELLO = {"role": "user", "content": "Hi"}
NO_ARGUMENTS = {**TIME, "parameters": {"type": "object", "properties": {}, "additionalProperties": False}}


@pytest.fixture(scope="module")
def client(serve: Any, wide_package: Any) -> Any:
    with serve(wide_package).client() as found:
        yield found


def test_the_text_is_that_of_chat(client: Any) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    chat = client.chat.completions.create(model="tiny", messages=messages, temperature=0, max_tokens=16)
    ask: dict[str, Any] = {"model": "tiny", "temperature": 0, "max_output_tokens": 16}
    for given in ({"instructions": "Be brief.", "input": "Hi"}, {"input": messages}):
        got = client.responses.create(**ask, **given)
        assert got.output_text == chat.choices[0].message.content
        assert got.status == "incomplete" and got.incomplete_details.reason == "max_output_tokens"
        assert got.usage.output_tokens == 16 and got.usage.input_tokens == chat.usage.prompt_tokens


def test_a_stream_has_every_event_in_order(client: Any) -> None:
    ask: dict[str, Any] = {"model": "tiny", "input": "Hi", "temperature": 0, "max_output_tokens": 16}
    whole = client.responses.create(**ask).output_text
    events = list(client.responses.create(**ask, stream=True))
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
    ]  # fmt: skip
    assert kinds[-4:] == [
        "response.output_text.done", "response.content_part.done", "response.output_item.done", "response.incomplete",
    ]  # fmt: skip
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == whole
    assert events[-1].response.output_text == whole
    ends = {"format": {"type": "json_schema", "name": "x", "schema": {"const": "ok"}}}
    with client.responses.stream(**{**ask, "text": ends}) as stream:
        assert stream.get_final_response().output_text.strip() == '"ok"'


def test_structured_text_and_calls(client: Any) -> None:
    text = {"format": {"type": "json_schema", "name": "x", "schema": {"enum": [{"a": 1}]}}}
    got = client.responses.create(model="tiny", input="Go", text=text)
    assert json.loads(got.output_text) == {"a": 1} and got.status == "completed"
    ask = {"model": "tiny", "tools": [NO_ARGUMENTS], "tool_choice": {"type": "function", "name": "time"}}
    (call,) = client.responses.create(input="Go", **ask).output
    assert (call.type, call.name, json.loads(call.arguments), call.status) == ("function_call", "time", {}, "completed")
    history = [
        {"role": "user", "content": "Go"},
        {"type": "function_call", "call_id": call.call_id, "name": "time", "arguments": "{}"},
        {"type": "function_call_output", "call_id": call.call_id, "output": "12:00"},
    ]
    events = list(client.responses.create(input=history, stream=True, **ask))
    assert "response.function_call_arguments.done" in [event.type for event in events]
    assert events[-1].response.output[0].name == "time"


@pytest.mark.parametrize(
    ("ask", "param"),
    [
        ({"previous_response_id": "resp-1"}, "previous_response_id"),
        ({"background": True}, "background"),
        ({"input": []}, "input"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type"),
        ({"instructions": "x", "input": [HELLO, {"role": "king", "content": "a"}]}, "input[1].role"),
        ({"input": "word " * 3000}, "input"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tools": [{"type": "function", "name": "f", "parameters": 3}]}, "tools[0].parameters"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"text": {"format": {"type": "json_schema", "name": "x", "schema": 3}}}, "text.format.schema"),
    ],
)
def test_what_is_wrong_is_named(client: Any, ask: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(**{"model": "tiny", "input": "Hi", **ask})
    assert caught.value.param == param and "messages[" not in caught.value.message
    assert "response_format" not in caught.value.message


def test_the_answer_is_as_the_description_says(client: Any) -> None:
    calls = {"tools": [NO_ARGUMENTS], "tool_choice": "required"}
    for more in ({}, {"instructions": "x", "metadata": {"a": "b"}, "top_logprobs": 1}, calls):
        raw = client.responses.with_raw_response.create(model="tiny", input="Hi", temperature=0, **more)
        document = json.loads(raw.http_response.content)
        assert document.keys() == set(ResponseObject.__struct_fields__)
        found = msgspec.convert(document, ResponseObject)
        assert found.output and found.usage is not None and found.usage.total_tokens > 2


def test_an_error_in_a_stream_is_its_last_event(client: Any) -> None:
    events = list(client.responses.create(model="tiny", input="Hi", stream=True, extra_body={"timeout_s": 1e-6}))
    assert [event.type for event in events] == ["response.created", "response.in_progress", "error"]
    assert events[-1].code == "deadline_exceeded" and events[-1].param == "timeout_s" and events[-1].message
    assert [event.sequence_number for event in events] == [0, 1, 2]


def test_log_probabilities(client: Any) -> None:
    ask: dict[str, Any] = {"model": "tiny", "input": "Hi", "temperature": 0, "max_output_tokens": 8}
    chat = client.chat.completions.create(
        model="tiny", messages=[HELLO], temperature=0, max_tokens=8, logprobs=True, top_logprobs=2
    )
    want = [(one.token, one.logprob, len(one.top_logprobs)) for one in chat.choices[0].logprobs.content]
    asked = {"top_logprobs": 2, "include": ["message.output_text.logprobs"]}
    part = client.responses.create(**ask, **asked).output[0].content[0]
    assert [(one.token, one.logprob, len(one.top_logprobs)) for one in part.logprobs] == want
    events = list(client.responses.create(**ask, **asked, stream=True))
    pieces = [one for event in events if event.type == "response.output_text.delta" for one in event.logprobs]
    assert [one.token for one in pieces] == [token for token, _, _ in want]
    assert [one.token for one in events[-1].response.output[0].content[0].logprobs] == [one.token for one in pieces]
    assert client.responses.create(**ask).output[0].content[0].logprobs == []
