"""Guides: masks of llguidance on a tokenizer of bytes."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import jsonschema
import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from datong.engine.guide import AfterReasoning, Grammars
from datong.engine.request import Request
from datong.engine.sampler import SamplingParams
from datong.engine.token_bytes import token_bytes
from datong.errors import InvalidRequest


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = tokenizers.Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(["</s>"])
    return SimpleNamespace(inner=inner, eos_ids=frozenset({256}), token_bytes=token_bytes(inner))


@pytest.fixture(scope="module")
def grammars(tokenizer: Any) -> Grammars:
    return Grammars(tokenizer, 300)  # the model has more columns than there are tokens


def texts(tokenizer: Any, allowed: np.ndarray) -> set[str]:
    return {tokenizer.inner.id_to_token(int(i)) for i in np.flatnonzero(allowed[:257])}


def test_what_may_come(grammars: Grammars, tokenizer: Any) -> None:
    guide = grammars.regex("a[bc]?")
    ids = {c: tokenizer.inner.token_to_id(c) for c in "abc"}
    assert texts(tokenizer, guide.allowed()) == {"a"}
    assert not guide.accept(ids["a"])
    assert texts(tokenizer, guide.allowed()) == {"b", "c", "</s>"}
    assert guide.accept(ids["c"]), "nothing can follow"


def test_a_request_takes_only_what_is_allowed(grammars: Grammars, tokenizer: Any) -> None:
    request = Request([1], 40, SamplingParams(logprobs=1), guide=grammars.regex("x{3}"))
    logits = np.zeros((1, 300), np.float32)
    logits[0, 7] = 5  # what the model wants; tokens beyond the tokenizer's are forbidden as well
    logits[0, 299] = 9
    taken = [request.take(logits) for _ in range(3)]
    assert taken == [False, False, True] and request.result.finish_reason == "stop"
    assert set(request.result.tokens) == {tokenizer.inner.token_to_id("x")}
    assert request.result.logprobs is not None
    assert request.result.logprobs[0].top[0][0] == 299, "log-probabilities stay the model's own"


def test_reasoning_is_free(grammars: Grammars, tokenizer: Any) -> None:
    guide = AfterReasoning(grammars.regex("ok"), tokenizer, "</think>")
    for c in "hm</think>":
        assert guide.allowed() is None and not guide.accept(tokenizer.inner.token_to_id(c))
    assert texts(tokenizer, guide.allowed()) == {"o"}


@pytest.mark.parametrize("make", ["regex", "lark", "json_schema"])
def test_what_is_no_grammar(grammars: Grammars, make: str) -> None:
    wrong = {"regex": "(", "lark": "start: (", "json_schema": {"type": "nonsense"}}[make]
    with pytest.raises(InvalidRequest, match="the grammar or schema is not usable"):
        getattr(grammars, make)(wrong)
    with pytest.raises(InvalidRequest, match="characters"):
        grammars.regex("a" * (2 << 20))


SCHEMA = {
    "type": "object",
    "properties": {
        "text": {"type": "string"},
        "number": {"type": "integer"},
        "list": {"type": "array", "items": {"type": "object", "properties": {"a": {"enum": ["x", "y"]}}}},
        "mail": {"type": "string", "pattern": "^[a-z]+@[a-z]+$"},
    },
    "required": ["text", "number", "list", "mail"],
}


@pytest.mark.parametrize("room", [60, 80, 150, 400])
@pytest.mark.parametrize("wanted", ["noise", "a", "1", "{", '"', "\\"])
def test_an_answer_ends_in_time(grammars: Grammars, tokenizer: Any, room: int, wanted: str) -> None:
    """What the model wants never ends by itself; the answer is a whole document all the same, and says it was cut."""
    rng = np.random.default_rng(room)
    request = Request([1], 1 + room, SamplingParams(temperature=1.0, seed=room), guide=grammars.json_schema(SCHEMA))
    while not request.done:
        logits = rng.normal(size=(1, 300)).astype(np.float32) * 3
        if wanted != "noise":
            logits[0, tokenizer.inner.token_to_id(wanted)] = 100
        request.take(logits)
    result = request.result
    jsonschema.validate(json.loads(tokenizer.inner.decode([t for t in result.tokens if t != 256])), SCHEMA)
    assert len(result.tokens) <= room and (result.finish_reason == "stop" or len(result.tokens) > room - 20)


def test_an_answer_without_room_is_cut_off(grammars: Grammars) -> None:
    request = Request([1], 21, SamplingParams(temperature=1.0, seed=1), guide=grammars.json_schema(SCHEMA))
    while not request.done:
        request.take(np.zeros((1, 300), np.float32))
    assert len(request.result.tokens) == 20 and request.result.finish_reason == "length"


def test_an_answer_with_room_is_the_models_own(grammars: Grammars, tokenizer: Any) -> None:
    text = '{"text": "abc", "number": 12, "list": [], "mail": "a@b"}'
    request = Request([1], 1 + len(text), SamplingParams(), guide=grammars.json_schema(SCHEMA))
    for c in text:
        logits = np.zeros((1, 300), np.float32)
        logits[0, tokenizer.inner.encode(c).ids[0]] = 9
        request.take(logits)
    assert tokenizer.inner.decode(request.result.tokens) == text and request.result.finish_reason == "stop"
