"""The official client for JavaScript (npm `openai`, tests/e2e/js): chat, streams and tools against a live server."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parents[1] / "js"
ASK = [{"role": "user", "content": "Say something."}]


@pytest.fixture(scope="module")
def live(serve: Any, wide_package: Path) -> Any:
    """A token is a character here: tools need more than 256."""
    return serve(wide_package)


@pytest.fixture(scope="module")
def node(live: Any) -> Callable[[str], Any]:
    """`node(case)`: what client.js prints of it."""
    program = shutil.which("node")
    if program is None:
        pytest.skip("no node: https://nodejs.org, 20 or later")
    if not (HERE / "node_modules/openai").is_dir():
        pytest.skip("the npm package openai is not installed: make npm")

    def run(case: str) -> Any:
        done = subprocess.run(
            [program, HERE / "client.js", case, live.url], capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


@pytest.fixture(scope="module")
def truth(wide_package: Path) -> Any:
    """What the model itself says."""
    import datong

    return datong.load(wide_package, threads=1).generate(ASK, max_tokens=20)


def test_models(node: Callable[[str], Any]) -> None:
    assert node("models") == ["tiny"]


def test_a_chat_is_the_offline_answer(node: Callable[[str], Any], truth: Any) -> None:
    assert node("chat") == {"text": truth.text, "end": "length", "tokens": 20}


def test_a_stream_is_the_same_text(node: Callable[[str], Any], truth: Any) -> None:
    got = node("stream")
    assert (got["text"], got["tokens"]) == (truth.text, 20) and got["pieces"] > 10
    assert node("helper") == {"text": truth.text}


def test_tools_are_called(node: Callable[[str], Any]) -> None:
    whole = node("tools")
    (call,) = whole["calls"]
    assert whole["end"] == "tool_calls" and whole["content"] is None
    assert call["type"] == "function" and call["function"]["name"] == "weather"
    assert json.loads(call["function"]["arguments"])["place"] in ("Beijing", "Berlin")
    streamed = node("streamed_tools")
    assert streamed["end"] == "tool_calls"
    assert [one["function"] for one in streamed["calls"]] == [one["function"] for one in whole["calls"]]


def test_the_clients_own_loop_of_tools(node: Callable[[str], Any]) -> None:
    got = node("run_tools")
    assert len(got["asked"]) == 2 and all(one["place"] in ("Beijing", "Berlin") for one in got["asked"])
    assert got["roles"] == ["user", "assistant", "tool", "assistant", "tool"]


def test_a_mistake_is_the_clients_exception(node: Callable[[str], Any]) -> None:
    assert node("mistake") == {"status": 400, "code": "invalid_value", "param": "temperature"}


def test_leaving_a_stream_ends_the_request(
    node: Callable[[str], Any], live: Any, until_true: Callable[..., None]
) -> None:
    cancelled = 'datong_answers_total{finish="cancelled",model="tiny"} 1.0'
    assert cancelled not in live.get("/metrics").text
    assert node("abort") == {"aborted": True}
    until_true(lambda: cancelled in live.get("/metrics").text)
