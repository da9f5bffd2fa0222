"""Guides: masks of llguidance on a tokenizer of bytes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

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
