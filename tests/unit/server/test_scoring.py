"""Log-probabilities of a prompt, taken in pieces."""

from __future__ import annotations

import numpy as np
import pytest

from datong.errors import DeviceError
from datong.server.scoring import PromptScore


def test_pieces_give_what_the_whole_gives() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 30, (5, 11)).astype(np.float32)
    tokens = [3, 1, 4, 1, 5]
    score = PromptScore(tokens, 2)
    assert [score.take(part) for part in (logits[:2], logits[2:4], logits[4:])] == [False, False, True]
    x = logits.astype(np.float64)
    expected = x - np.log(np.exp(x - x.max(1, keepdims=True)).sum(1, keepdims=True)) - x.max(1, keepdims=True)
    assert [one.token for one in score.sampled] == tokens[1:]
    for i, one in enumerate(score.sampled):
        assert one.logprob == pytest.approx(expected[i, tokens[i + 1]], abs=1e-5)
        assert [token for token, _ in one.top] == np.argsort(-logits[i])[:2].tolist()
        assert [value for _, value in one.top] == pytest.approx(sorted(expected[i])[:-3:-1], abs=1e-5)


def test_nan_is_a_device_error() -> None:
    with pytest.raises(DeviceError):
        PromptScore([1, 2], 0).take(np.full((1, 4), np.nan, np.float32))
