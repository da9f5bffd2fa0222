"""Over the device without arithmetic, whose logits are known."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from datong.engine.model import Model
from datong.engine.perplexity import log_likelihood, perplexity
from datong.errors import InvalidRequest


@pytest.fixture
def make_model(make_engine):
    def make(context: int = 1000) -> Model:
        package = SimpleNamespace(tokenizer_file=None, root="here")
        return Model(package, make_engine(1000, context=context, max_tokens=7, max_rows=3), "null")

    return make


def test_equal_logits_are_as_surprising_as_the_vocabulary_is_large():
    np.testing.assert_allclose(log_likelihood(np.full((2, 50), 3e4, np.float32), [1, 49]), -math.log(50))


def test_logits_of_any_size_do_not_overflow():
    logs = log_likelihood(np.array([[1e4, -1e4], [0, 1e4]], np.float32), [0, 0])
    np.testing.assert_allclose(logs, [0, -1e4])


def test_perplexity_is_that_of_the_logits_however_the_steps_fall(make_model):
    model, ids = make_model(), list(range(3, 23))
    logits = model.logits(ids).astype(np.float64)
    chosen = logits[np.arange(19), ids[1:]] - np.log(np.exp(logits[:-1]).sum(axis=1))
    assert perplexity(model, ids) == pytest.approx(math.exp(-chosen.mean()), rel=1e-9)


def test_a_text_longer_than_the_context_is_cut(make_model):
    ids = list(range(3, 24))  # 8 + 8 + 5: the first of each piece is given
    pieces = [ids[0:8], ids[8:16], ids[16:21]]
    model, whole = make_model(), make_model(context=8)
    logs = [math.log(perplexity(model, p)) * (len(p) - 1) for p in pieces]
    assert perplexity(whole, ids) == pytest.approx(math.exp(sum(logs) / 18), rel=1e-9)
    assert perplexity(whole, ids[:9]) == pytest.approx(
        perplexity(model, ids[:8]), rel=1e-9
    )  # a rest of one predicts nothing


def test_one_token_has_no_perplexity(make_model):
    with pytest.raises(InvalidRequest, match="at least two tokens was expected, it has 1"):
        perplexity(make_model(), [5])
    with pytest.raises(InvalidRequest, match="token ids should be 0 to 339"):
        perplexity(make_model(), [5, 340])
