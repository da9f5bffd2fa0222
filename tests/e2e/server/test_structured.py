"""Answers that must match: response_format, forced tool calls, and calls read from free text.

The tiny model has random weights, so whatever is valid is so because of the constraint alone.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import openai
import pytest

from datong.package.create import import_checkpoint

ASK: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "Go."}], "temperature": 1.0}
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "colour": {"enum": ["red", "green"]},
        "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
    },
    "required": ["name", "age", "colour", "tags"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Of a place",
        "parameters": {
            "type": "object",
            "properties": {
                "place": {"enum": ["Beijing", "Berlin"]},
                "days": {"type": "integer", "minimum": 1, "maximum": 9},
            },
            "required": ["place"],
            "additionalProperties": False,
        },
    },
}
TIME = {"type": "function", "function": {"name": "time"}}


@pytest.fixture(scope="module")
def live(serve: Any, wide_package: Any) -> Any:
    """A token is a character here: tools and calls need more than 256."""
    return serve(wide_package)


@pytest.fixture(scope="module")
def client(live: Any) -> Any:
    with live.client() as found:
        yield found


def test_a_json_schema_is_followed(client: Any) -> None:
    for seed in range(5):
        got = client.chat.completions.create(
            **ASK, n=4, seed=seed * 10, response_format=FORMAT, max_tokens=200, extra_body={"ignore_eos": False}
        )
        for choice in got.choices:
            assert choice.finish_reason == "stop"
            jsonschema.validate(json.loads(choice.message.content), PERSON)


def test_an_answer_ends_before_its_tokens_do(client: Any) -> None:
    """A text and a number without bounds: noise goes on and on, the document is whole, and says that it was cut."""
    schema = {
        "type": "object",
        "properties": {"text": {"type": "string"}, "number": {"type": "integer"}},
        "required": ["text", "number"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    got = client.chat.completions.create(**ASK, n=8, seed=1, response_format=form, max_tokens=60)
    for choice in got.choices:
        jsonschema.validate(json.loads(choice.message.content), schema)
    assert "length" in {choice.finish_reason for choice in got.choices} and got.usage.completion_tokens <= 8 * 60
    required = client.chat.completions.create(
        **ASK, n=4, seed=1, tools=[NOTE], tool_choice="required", parallel_tool_calls=False, max_tokens=90
    )
    for choice in required.choices:
        jsonschema.validate(json.loads(choice.message.tool_calls[0].function.arguments), NOTE["function"]["parameters"])


def test_the_client_parses_into_a_class(client: Any) -> None:
    pydantic = pytest.importorskip("pydantic")
    shape = pydantic.create_model("Shape", kind=(str, pydantic.Field(pattern="^(disc|box)$")), sides=(bool, ...))
    got = client.chat.completions.parse(**ASK, response_format=shape, max_tokens=150)
    assert got.choices[0].message.parsed.kind in ("disc", "box")


def test_a_json_object_and_streams(client: Any) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object", "maxProperties": 0}}}
    streamed = client.chat.completions.create(**ASK, response_format=schema, stream=True)
    assert json.loads("".join(c.choices[0].delta.content or "" for c in streamed)) == {}
    got = client.chat.completions.create(**ASK, response_format={"type": "json_object"}, max_tokens=40, seed=1)
    assert got.choices[0].message.content.lstrip()[0] == "{"


def test_a_regex_and_a_grammar(client: Any, live: Any) -> None:
    pattern = "[a-c]{3,6}-[0-9]{2}"
    got = client.chat.completions.create(**ASK, n=4, response_format={"type": "regex", "regex": pattern})
    assert all(re.fullmatch(pattern, choice.message.content) for choice in got.choices)
    body = {"model": "tiny", "prompt": "x", "max_tokens": 50, "n": 4}
    lark = 'start: "yes" | "no" " way"'
    answer = live.post("/v1/completions", json={**body, "response_format": {"type": "grammar", "grammar": lark}})
    assert {choice["text"] for choice in answer.json()["choices"]} <= {"yes", "no way"}


def test_a_required_call_matches_its_schema(client: Any) -> None:
    for seed in range(4):
        got = client.chat.completions.create(
            **ASK, tools=[WEATHER, TIME], tool_choice="required", parallel_tool_calls=False, n=3, seed=seed * 10
        )
        for choice in got.choices:
            (call,) = choice.message.tool_calls
            assert choice.finish_reason == "tool_calls" and choice.message.content is None
            assert call.type == "function" and call.id.startswith("call-")
            arguments = json.loads(call.function.arguments)
            if call.function.name == "weather":
                jsonschema.validate(arguments, WEATHER["function"]["parameters"])
            else:
                assert (call.function.name, arguments) == ("time", {})


def test_parallel_calls_and_a_named_one(client: Any) -> None:
    ask = {**ASK, "tools": [WEATHER, TIME], "max_tokens": 1200, "n": 8}
    got = client.chat.completions.create(**ask, tool_choice="required", seed=3)
    counts = [len(choice.message.tool_calls or ()) for choice in got.choices]
    assert max(counts) > 1, counts
    named = client.chat.completions.create(
        **ask, tool_choice={"type": "function", "function": {"name": "time"}}, stream=True
    )
    calls = [call for c in named if c.choices for call in c.choices[0].delta.tool_calls or ()]
    assert len(calls) == 8 and {call.function.name for call in calls} == {"time"}
    assert {call.index for call in calls} == {0} and len({call.id for call in calls}) == 8


# marks by which a chat template shows its form of calls (datong/importer/dialogue)
FORMS = {"qwen_xml": "<tool_call> <function= <parameter=", "minimax_m2": "<minimax:tool_call>", "glm4": "<arg_key>"}
PROPERTIES = {"text": {"type": "string"}, "days": {"type": "integer"}}
NOTE = {
    "type": "function",
    "function": {"name": "note", "parameters": {"type": "object", "properties": PROPERTIES, "required": ["days"]}},
}


@pytest.mark.parametrize("form", FORMS)
def test_a_required_call_in_a_form_that_is_not_json(
    form: str, serve: Any, checkpoint_template: Path, tmp_path: Path
) -> None:
    source = Path(shutil.copytree(checkpoint_template, tmp_path / "tiny"))
    for name, changes in (
        ("config.json", {"max_position_embeddings": 2048}),
        ("tokenizer_config.json", {"chat_template": "{# " + FORMS[form] + " #}{{ messages[0].content }}"}),
    ):
        (source / name).write_text(json.dumps({**json.loads((source / name).read_text()), **changes}))
    root = import_checkpoint(source).root
    assert json.loads((root / "dialogue.json").read_text())["name"] == form
    whole = 0
    with serve(root).client() as client:
        for seed in range(3):
            ask = {**ASK, "tools": [WEATHER, TIME, NOTE], "tool_choice": "required", "max_tokens": 400, "n": 4}
            for choice in client.chat.completions.create(**ask, seed=seed * 10, parallel_tool_calls=False).choices:
                if choice.finish_reason == "length":  # a text of noise may have no end
                    continue
                whole += 1
                (call,) = choice.message.tool_calls
                arguments = json.loads(call.function.arguments)
                schemas = {
                    tool["function"]["name"]: tool["function"].get("parameters") for tool in (WEATHER, TIME, NOTE)
                }
                jsonschema.validate(arguments, schemas[call.function.name] or {"maxProperties": 0})
    assert whole > 4


def test_calls_in_free_text_are_read(client: Any) -> None:
    """`auto`: the text is what the model wants; here a regex makes it want two calls."""
    one = r'<tool_call>\n\{"name": "weather", "arguments": \{"place": "Berlin", "days": [0-9]\}\}\n</tool_call>'
    ask = {**ASK, "tools": [WEATHER], "response_format": {"type": "regex", "regex": f"Well\\. {one}\\n{one}"}}
    message = client.chat.completions.create(**ask).choices[0].message
    assert message.content.strip() == "Well." and len(message.tool_calls) == 2
    assert {json.loads(call.function.arguments)["place"] for call in message.tool_calls} == {"Berlin"}
    single = client.chat.completions.create(**ask, parallel_tool_calls=False).choices[0].message
    assert len(single.tool_calls) == 1
    none = client.chat.completions.create(**ask, tool_choice="none").choices[0].message
    assert none.tool_calls is None and "<tool_call>" in none.content


def test_results_of_tools_go_back_into_the_conversation(client: Any, live: Any) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "time", "arguments": "{}"}}
    messages = [
        *ASK["messages"],
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "12:00"},
    ]
    without = client.chat.completions.create(**{**ASK, "messages": messages}, max_tokens=1).usage.prompt_tokens
    with_ = client.chat.completions.create(**{**ASK, "messages": messages}, tools=[TIME], max_tokens=1, n=1)
    assert with_.usage.prompt_tokens > without + 20


@pytest.mark.parametrize(
    ("ask", "param"),
    [
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "x"}}}}, "response_format"),
        ({"response_format": {"type": "regex", "regex": "(a"}}, "response_format"),
        ({"response_format": {"type": "regex"}}, "response_format.regex"),
        ({"response_format": {"type": "grammar", "grammar": "start: ("}}, "response_format"),
        ({"tools": [TIME], "tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "x"}}}],
          "tool_choice": "required"}, "tools"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(client: Any, ask: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**{**ASK, **ask})
    assert caught.value.param == param, caught.value.body
