"""Thoughts apart from the answer: whole, streamed, as /v1/responses. A regex makes the tiny model think."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from datong.package.create import import_checkpoint
from datong.server.answers import OutputMessage, OutputReasoning, ResponseObject

THINKS = {"type": "regex", "regex": "<think>\nhm [0-9]\n</think>\n\nyes"}
ASK: dict[str, Any] = {"model": "tiny", "seed": 2}
MESSAGES = [{"role": "user", "content": "Go."}]


def thinking(source: Path, target: Path, end: str = "") -> Path:
    """The tiny model with a template of one that thinks; `end` is what its answers begin after."""
    copy = Path(shutil.copytree(source, target))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 2048}))
    known = json.loads((copy / "tokenizer_config.json").read_text())
    template = "{# <think> </think> #}{{ messages[0].content }}" + end
    (copy / "tokenizer_config.json").write_text(json.dumps({**known, "chat_template": template}))
    return import_checkpoint(copy).root


@pytest.fixture(scope="module")
def client(serve: Callable[..., Any], checkpoint_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    with serve(thinking(checkpoint_template, tmp_path_factory.mktemp("think") / "tiny")).client() as found:
        yield found


def test_chat(client: Any) -> None:
    got = client.chat.completions.create(**ASK, messages=MESSAGES, n=2, response_format=THINKS)
    for choice in got.choices:
        assert choice.message.content == "yes" and choice.message.reasoning_content.startswith("hm ")
        assert choice.finish_reason == "stop"
    assert 0 < got.usage.completion_tokens_details.reasoning_tokens < got.usage.completion_tokens
    chunks = list(client.chat.completions.create(**ASK, messages=MESSAGES, stream=True, response_format=THINKS))
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert "".join(delta.content or "" for delta in deltas) == "yes"
    thoughts = [delta.reasoning_content for delta in deltas if getattr(delta, "reasoning_content", None)]
    assert "".join(thoughts) == got.choices[0].message.reasoning_content and len(thoughts) > 2


def test_responses(client: Any) -> None:
    ask = {**ASK, "input": "Go.", "text": {"format": THINKS}}
    ask["extra_body"] = {"seed": ask.pop("seed")}
    whole = client.responses.create(**ask)
    thought, message = whole.output
    assert (thought.type, message.type, whole.output_text) == ("reasoning", "message", "yes")
    assert thought.content[0].text.startswith("hm ") and whole.usage.output_tokens_details.reasoning_tokens > 0
    raw = client.responses.with_raw_response.create(**ask).http_response.content
    assert [type(item) for item in msgspec.json.decode(raw, type=ResponseObject).output] == [
        OutputReasoning,
        OutputMessage,
    ]
    events = list(client.responses.create(**ask, stream=True))
    pieces = [event.delta for event in events if event.type == "response.reasoning_text.delta"]
    assert "".join(pieces) == thought.content[0].text
    assert [item.type for item in events[-1].response.output] == ["reasoning", "message"]


def test_a_schema_holds_after_the_thoughts_only(
    serve: Callable[..., Any], checkpoint_template: Path, tmp_path: Path
) -> None:
    """The template has opened the thoughts: they are free, what follows them is constrained."""
    end = "{{ '<think>\\n' }}"
    with serve(thinking(checkpoint_template, tmp_path / "tiny", end)).client() as client:
        ask = {**ASK, "messages": MESSAGES, "max_tokens": 300}
        form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"const": "ok"}}}
        message = client.chat.completions.create(**ask, response_format=form).choices[0].message
        assert message.reasoning_content and (not message.content or json.loads(message.content) == "ok")
