"""Answers of published models taken apart: reasoning, text and calls, whole and in pieces of any size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datong.engine.dialogue import DialogueReader, Piece
from datong.importer.dialogue.choose import choose, entries
from datong.spec.dialogue import Dialogue

DATA = Path(__file__).parents[2] / "data" / "dialogues"
ROWS: list[dict[str, Any]] = json.loads((DATA / "captured.json").read_text(encoding="utf-8"))
BY_NAME = {entry.dialogue.name: entry.dialogue for entry in entries()}
FIRST = {"line": "7", "percent": 35, "hold": True, "steps": [1.5, 2], "limits": {"low": 0.5, "unit": "bar"}}
SECOND = {"text": 'a < b, "阀门" opened\nsecond line </x>'}
CALLS = [("set_valve", FIRST), ("log", SECOND)]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "set_valve",
            "parameters": {
                "properties": {
                    "line": {"type": "string"},
                    "percent": {"type": "integer"},
                    "hold": {"type": "boolean"},
                    "steps": {"type": "array", "items": {"type": "number"}},
                    "limits": {"type": "object", "properties": {"low": {"type": "number"}, "unit": {"type": "string"}}},
                }
            },
        },
    },
    {"type": "function", "function": {"name": "log", "parameters": {"properties": {"text": {"type": "string"}}}}},
]


def read(dialogue: Dialogue | None, text: str, size: int = 0, prompt: str = "", tools: Any = TOOLS) -> list[Piece]:
    """All pieces of an answer that comes `size` characters at a time, neighbours of one kind joined."""
    reader = DialogueReader(dialogue, tools, prompt)
    pieces: list[Piece] = []
    for start in range(0, len(text), size or max(1, len(text))):
        pieces += reader.push(text[start : start + (size or len(text))])
    pieces += reader.finish()
    joined: list[Piece] = []
    for piece in pieces:
        if joined and piece.kind == joined[-1].kind != "call":
            joined[-1] = Piece(piece.kind, joined[-1].text + piece.text)
        else:
            joined.append(piece)
    return joined


def calls_of(pieces: list[Piece]) -> list[tuple[str, Any]]:
    return [(p.call.name, json.loads(p.call.arguments)) for p in pieces if p.call]


def text_of(pieces: list[Piece], kind: str = "text") -> str:
    return "".join(p.text for p in pieces if p.kind == kind)


@pytest.mark.parametrize("size", [0, 1, 5])
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["model"])
def test_what_a_published_template_writes_is_read_back(row: dict[str, Any], size: int) -> None:
    dialogue = choose("\n".join(row["marks"]), "unknown")
    assert dialogue is not None
    pieces = read(dialogue, row["text"], size, row["end"])
    assert calls_of(pieces) == CALLS[: row["calls"]]
    if dialogue.reasoning and dialogue.reasoning.close in row["text"] and "valve 7." in row["text"]:
        assert text_of(pieces, "reasoning") == "The user wants valve 7."
        assert text_of(pieces) == "I will do that."


WRITTEN = {
    "step3": '<｜tool_calls_begin｜><｜tool_call_begin｜>function<｜tool_sep｜><steptml:invoke name="log">'
    '<steptml:parameter name="text">if a < b: 10</steptml:parameter></steptml:invoke><｜tool_call_end｜><｜tool_sep｜>'
    '<｜tool_call_begin｜>function<｜tool_sep｜><steptml:invoke name="set_valve">\n<steptml:parameter name="percent">10'
    "</steptml:parameter>\n</steptml:invoke><｜tool_call_end｜><｜tool_calls_end｜>",
    "internlm2": '<|action_start|><|plugin|>\n{"name": "log", "parameters": {"text": "if a < b: 10"}}<|action_end|>'
    '<|action_start|><|plugin|>\n{"name": "set_valve", "parameters": {"percent": 10}}<|action_end|>',
    "deepseek_v3": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>log\n```json\n"
    '{"text": "if a < b: 10"}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>set_valve\n```json\n'
    '{"percent": 10}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
    "llama3": '{"name": "log", "parameters": {"text": "if a < b: 10"}}; '
    '{"name": "set_valve", "parameters": {"percent": 10}}',
    "minimax_m1": '<tool_calls>\n{"name": "log", "arguments": {"text": "if a < b: 10"}}\n'
    '{"name": "set_valve", "arguments": {"percent": 10}}\n</tool_calls>',
}


@pytest.mark.parametrize("size", [0, 1])
@pytest.mark.parametrize("name", WRITTEN)
def test_formats_that_have_no_template_to_render(name: str, size: int) -> None:
    """Texts as the formats' own descriptions show them."""
    pieces = read(BY_NAME[name], WRITTEN[name], size)
    assert calls_of(pieces) == [("log", {"text": "if a < b: 10"}), ("set_valve", {"percent": 10})]
    assert text_of(pieces) == ""


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("hermes", 'see <tool_call>\n{"name": broken}\n</tool_call> end'),
        ("hermes", "a <tool_call"),
        ("hermes", '<tool_call>{"name": "log", "arguments": {"text": "'),
        ("qwen_xml", "<tool_call>\nnothing of ours\n</tool_call>"),
        ("deepseek_v31", "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>log<｜tool▁sep｜>{no json"),
        ("llama3", '{"name": "is this JSON?'),
        ("llama3", '{"answer": 4}'),
        ("mistral", "[TOOL_CALLS] none"),
    ],
)
def test_what_is_no_call_stays_in_the_text(name: str, text: str) -> None:
    for size in (0, 1, 3):
        pieces = read(BY_NAME[name], text, size)
        assert not calls_of(pieces)
        marks = BY_NAME[name].marks()
        lost = [word for word in text.split() if word not in text_of(pieces) and not any(m in word for m in marks)]
        assert not lost, pieces


def test_a_closing_mark_inside_a_json_string_does_not_end_the_call() -> None:
    text = '<tool_call>{"name": "log", "arguments": {"text": "</tool_call> in a string"}}</tool_call>after'
    pieces = read(BY_NAME["hermes"], text, 4)
    assert calls_of(pieces) == [("log", {"text": "</tool_call> in a string"})]
    assert text_of(pieces) == "after"


def test_a_call_whose_closing_mark_never_came_is_still_a_call() -> None:
    pieces = read(BY_NAME["hermes"], '<tool_call>\n{"name": "log", "arguments": {"text": "x"}}\n', 2)
    assert calls_of(pieces) == [("log", {"text": "x"})]


def test_without_tools_calls_are_text_and_reasoning_is_not() -> None:
    text = '<think>\nhm\n</think>\n\nyes <tool_call>{"name": "log", "arguments": {}}</tool_call>'
    pieces = read(BY_NAME["hermes"], text, 3, tools=None)
    assert text_of(pieces, "reasoning") == "hm"
    assert text_of(pieces) == 'yes <tool_call>{"name": "log", "arguments": {}}</tool_call>'


def test_a_prompt_that_ends_inside_reasoning_starts_the_answer_there() -> None:
    pieces = read(BY_NAME["think"], "because\n</think>\nso", 1, prompt="<|im_start|>assistant\n<think>\n")
    assert [(p.kind, p.text) for p in pieces] == [("reasoning", "because"), ("text", "so")]


def test_values_follow_the_schema() -> None:
    def value(text: str, schema: dict[str, Any]) -> Any:
        tools = [{"function": {"name": "f", "parameters": {"properties": {"x": schema}}}}]
        body = f"<tool_call>f<arg_key>x</arg_key><arg_value>{text}</arg_value></tool_call>"
        [(_, arguments)] = calls_of(read(BY_NAME["glm4"], body, tools=tools))
        return arguments["x"]

    assert value("10", {"type": "string"}) == "10"
    assert value("10", {"type": "integer"}) == 10
    assert value("True", {"type": "boolean"}) is True
    assert value("[1, 2]", {}) == [1, 2]
    assert value("plain words", {"type": "object"}) == "plain words"
    assert value("null", {"type": ["string", "null"]}) is None
    assert value("NaN", {"type": "number"}) == "NaN"  # no JSON


def test_without_a_description_everything_is_text() -> None:
    assert read(None, "\n<think>a</think>\n", 2) == [Piece("text", "\n<think>a</think>\n")]


@given(st.sampled_from(sorted(BY_NAME)), st.data())
def test_any_text_in_any_pieces(name: str, data: st.DataObject) -> None:
    """Never an exception; the same result however the text is cut; plain text comes through unchanged."""
    dialogue = BY_NAME[name]
    parts = st.sampled_from(
        [*dialogue.marks(), "{", "}", '"', "name", "\n", "x", "log", '{"name": "log", "arguments": {}}']
    )
    text = "".join(data.draw(st.lists(parts | st.text(max_size=3), max_size=12)))
    whole = read(dialogue, text)
    assert read(dialogue, text, data.draw(st.integers(1, 7))) == whole
    if not any(mark in text for mark in dialogue.marks()) and "{" not in text:
        assert text_of(whole) == text
