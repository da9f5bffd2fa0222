"""Grammars of forced calls: each form that packages describe, written out by hand after its chat template."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import msgspec
import pytest
from tokenizers import AddedToken, Tokenizer, models

import datong
import datong.importer.dialogue
from datong.engine.dialogue import DialogueReader
from datong.server.call_grammar import call_grammar, channel_grammar
from datong.server.errors import ApiError
from datong.server.tools import generic
from datong.spec.dialogue import Dialogue, ToolCalls

DATA = Path(datong.importer.dialogue.__file__).parent / "data"
PARAMETERS = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "unit": {"type": "string", "enum": ["C", "F"]},
        "days": {"type": "integer"},
        "where": {"$ref": "#/$defs/place"},
    },
    "required": ["city", "days"],
    "$defs": {"place": {"type": "array", "items": {"type": "number"}}},
}
WEATHER = {"type": "function", "function": {"name": "get_weather", "parameters": PARAMETERS}}
TIME = {"type": "function", "function": {"name": "get_time"}}
TOOLS = [WEATHER, TIME]
ARGUMENTS = {"city": "New\nYork <b>", "days": 3, "where": [1.5, 2]}
# name -> a call of get_weather with ARGUMENTS, one of get_time
WRITTEN = {
    "qwen_xml": (
        "<tool_call>\n<function=get_weather>\n<parameter=city>\nNew\nYork <b>\n</parameter>\n<parameter=days>\n3\n"
        "</parameter>\n<parameter=where>\n[1.5, 2]\n</parameter>\n</function>\n</tool_call>",
        "<tool_call>\n<function=get_time>\n</function>\n</tool_call>",
    ),
    "minimax_m2": (
        '<minimax:tool_call>\n<invoke name="get_weather">\n<parameter name="city">New\nYork <b></parameter>\n'
        '<parameter name="days">3</parameter>\n<parameter name="where">[1.5, 2]</parameter>\n</invoke>\n'
        "</minimax:tool_call>",
        '<minimax:tool_call>\n<invoke name="get_time">\n</invoke>\n</minimax:tool_call>',
    ),
    "minimax_m3": (
        ']<]minimax[>[<tool_call>\n]<]minimax[>[<invoke name="get_weather">]<]minimax[>[<city>New\nYork <b>'
        "]<]minimax[>[</city>]<]minimax[>[<days>3]<]minimax[>[</days>]<]minimax[>[<where>[1.5, 2]]<]minimax[>[</where>"
        "]<]minimax[>[</invoke>\n]<]minimax[>[</tool_call>",
        ']<]minimax[>[<tool_call>\n]<]minimax[>[<invoke name="get_time">]<]minimax[>[</invoke>\n'
        "]<]minimax[>[</tool_call>",
    ),
    "step3": (
        '<｜tool_calls_begin｜><｜tool_call_begin｜><steptml:invoke name="get_weather"><steptml:parameter name="city">'
        'New\nYork <b></steptml:parameter><steptml:parameter name="days">3</steptml:parameter><steptml:parameter name='
        '"where">[1.5, 2]</steptml:parameter></steptml:invoke><｜tool_call_end｜><｜tool_calls_end｜>',
        '<｜tool_calls_begin｜><｜tool_call_begin｜><steptml:invoke name="get_time"></steptml:invoke>'
        "<｜tool_call_end｜><｜tool_calls_end｜>",
    ),
    "glm4": (
        "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>New\nYork <b></arg_value>\n<arg_key>days</arg_key>"
        "\n<arg_value>3</arg_value>\n<arg_key>where</arg_key>\n<arg_value>[1.5, 2]</arg_value>\n</tool_call>",
        "<tool_call>get_time\n</tool_call>",
    ),
    "deepseek_v32": (
        '<｜DSML｜function_calls>\n<｜DSML｜invoke name="get_weather">\n<｜DSML｜parameter name="city" string="true">'
        'New\nYork <b></｜DSML｜parameter>\n<｜DSML｜parameter name="days" string="false">3</｜DSML｜parameter>\n'
        '<｜DSML｜parameter name="where" string="false">[1.5, 2]</｜DSML｜parameter>\n</｜DSML｜invoke>\n'
        "</｜DSML｜function_calls>",
        '<｜DSML｜function_calls>\n<｜DSML｜invoke name="get_time">\n</｜DSML｜invoke>\n</｜DSML｜function_calls>',
    ),
    "deepseek_v3": (
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n"
        + json.dumps(ARGUMENTS) + "\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_time\n```json\n{}\n```<｜tool▁call▁end｜>"
        "<｜tool▁calls▁end｜>",
    ),
    "deepseek_v31": (
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>" + json.dumps(ARGUMENTS)
        + "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_time<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    ),
    "hermes": (
        '<tool_call>\n{"name": "get_weather", "arguments": ' + json.dumps(ARGUMENTS) + "}\n</tool_call>",
        '<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>',
    ),
}  # fmt: skip
# marks that are tokens of their own in the models' vocabularies
TOKENS = ("<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>", "｜DSML｜",
          "]<]minimax[>[", "<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>",
          "<｜tool▁calls▁end｜>", "<minimax:tool_call>", "</minimax:tool_call>")  # fmt: skip


def form_of(name: str) -> Dialogue:
    table = tomllib.loads((DATA / f"{name}.toml").read_text(encoding="utf-8"))
    chosen_by = ("marks", "without", "families")
    return msgspec.convert({key: value for key, value in table.items() if key not in chosen_by}, Dialogue)


class Bytes:
    """A vocabulary of bytes, and of `added` tokens after them."""

    def __init__(self, added: tuple[str, ...] = ()) -> None:
        self.added = {text: 257 + i for i, text in enumerate(added)}
        self.inner = Tokenizer(models.WordLevel({f"<{i}>": i for i in range(257)}, unk_token="<0>"))
        self.inner.add_special_tokens([AddedToken(text, special=True) for text in added])

    def encode(self, text: str) -> list[int]:
        found: list[int] = []
        while text:
            hit = next((t for t in sorted(self.added, key=len, reverse=True) if text.startswith(t)), None)
            found += [self.added[hit]] if hit else list(text[0].encode())
            text = text[len(hit) if hit else 1 :]
        return found


def valid(grammar: str, text: str, vocabulary: Bytes | None = None) -> bool:
    """Does the text match the whole grammar?"""
    import llguidance
    from llguidance._tokenizer import TokenizerWrapper

    vocabulary = vocabulary or Bytes()

    class Wrapped:
        eos_token_id, bos_token_id, special_token_ids = 256, None, (256, *vocabulary.added.values())
        tokens = (*(bytes([i]) for i in range(256)), b"</s>", *(text.encode() for text in vocabulary.added))

        def __call__(self, text: bytes) -> list[int]:
            return list(text)

    matcher = llguidance.LLMatcher(llguidance.LLTokenizer(TokenizerWrapper(Wrapped())), grammar)
    assert not matcher.get_error(), (matcher.get_error(), grammar)
    data = vocabulary.encode(text)
    return matcher.try_consume_tokens(data) == len(data) and matcher.is_accepting()


@pytest.mark.parametrize("added", [(), TOKENS], ids=["bytes", "tokens"])
@pytest.mark.parametrize("name", WRITTEN)
def test_what_models_write_is_what_is_forced(name: str, added: tuple[str, ...]) -> None:
    dialogue, vocabulary = form_of(name), Bytes(added)
    tokenizer = vocabulary if added else None
    many, single = (call_grammar(dialogue.tools, TOOLS, which, tokenizer) for which in (True, False))
    weather, time = WRITTEN[name]
    for text, called in ((weather, ("get_weather", ARGUMENTS)), (time, ("get_time", {}))):
        assert valid(many, text, vocabulary) and valid(single, text, vocabulary)
        reader = DialogueReader(dialogue, TOOLS)
        [call] = [piece.call for piece in (*reader.push(text), *reader.finish()) if piece.call]
        assert (call.name, json.loads(call.arguments)) == called
    for wrong in (
        weather.replace("get_weather", "get_wether"), weather.replace("get_weather", "get_time"),
        weather.replace("3", "three"), weather.replace("1.5", "a"), time.replace("get_time", "get_weather"),
        weather[:-3], "Hello " + weather,
    ):  # fmt: skip
        assert not valid(many, wrong, vocabulary), wrong
    only = call_grammar(dialogue.tools, [TIME], False, tokenizer)
    assert valid(only, time, vocabulary) and not valid(only, weather, vocabulary)


@pytest.mark.parametrize("name", WRITTEN)
def test_several_calls(name: str) -> None:
    dialogue = form_of(name)
    assert dialogue.tools
    texts, (opened, closed) = list(WRITTEN[name]), dialogue.tools.section
    bodies = [text.removeprefix(opened).removesuffix(closed).strip("\n") for text in texts]
    both = opened + "\n" + "\n".join(bodies) + "\n" + closed if opened else "\n".join(bodies)
    many, single = (call_grammar(dialogue.tools, TOOLS, which, None) for which in (True, False))
    assert valid(many, both) and not valid(single, both)
    reader = DialogueReader(dialogue, TOOLS)
    calls = [piece.call for piece in (*reader.push(both), *reader.finish()) if piece.call]
    assert [call.name for call in calls] == ["get_weather", "get_time"]


def test_a_choice_is_one_of_the_listed() -> None:
    dialogue = form_of("minimax_m2")
    grammar = call_grammar(dialogue.tools, TOOLS, True, None)
    text = WRITTEN["minimax_m2"][0]
    with_unit = text.replace('<parameter name="days">', '<parameter name="unit">F</parameter>\n<parameter name="days">')
    assert valid(grammar, with_unit) and not valid(grammar, with_unit.replace(">F<", ">K<"))


def test_a_section_without_marks_for_calls() -> None:
    form = ToolCalls(section=("<calls>", "</calls>"), fields=(("name", "parameters"),))
    assert valid(call_grammar(form, [TIME], True, None), '<calls>{"name": "get_time", "parameters": {}}</calls>')


def test_every_description_gives_a_grammar() -> None:
    for path in DATA.glob("*.toml"):
        form = form_of(path.stem).tools
        if form is not None:
            valid(call_grammar(form, TOOLS, True, None), "")
    assert valid(call_grammar(generic(None).tools, [TIME], True, None), WRITTEN["hermes"][1])


@pytest.mark.parametrize("special", [False, True])
def test_a_call_in_channels(special: bool) -> None:
    dialogue = form_of("harmony")
    assert dialogue.channels
    vocabulary = Bytes(("<|channel|>", "<|message|>", "<|constrain|>") if special else ())
    grammar = channel_grammar(dialogue.channels, TOOLS, vocabulary if special else None)
    text = "<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>" + json.dumps(ARGUMENTS)
    assert valid(grammar, text, vocabulary)
    [call] = [piece.call for piece in DialogueReader(dialogue, TOOLS).push(text + "<|call|>")]
    assert call and (call.name, json.loads(call.arguments)) == ("get_weather", ARGUMENTS)
    for wrong in (text.replace("weather", "rain"), text.replace("3", '"3"'), text.replace("commentary", "final")):
        assert not valid(grammar, wrong, vocabulary)


def test_a_model_without_calls_is_refused() -> None:
    with pytest.raises(ApiError, match="tool_choice can be forced only"):
        call_grammar(None, TOOLS, True, None)
