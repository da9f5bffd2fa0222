"""Perplexity: how surprised a model is by a text. Logits are used up step by step, never kept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from datong.engine.request import Score
from datong.engine.sequence import Sequence as Tokens
from datong.errors import InvalidRequest

if TYPE_CHECKING:
    from datong.engine.model import Model


class Likelihood(Score):
    """Teacher forcing of which only log p(token | those before it) is kept: [T - 1] f64."""

    def __init__(self, tokens: list[int]) -> None:  # not the base's: that makes room for all logits
        self.sequence = Tokens(tokens, len(tokens), score=True, owner=self)
        self.logs: npt.NDArray[np.float64] = np.empty(len(tokens) - 1)
        self.error: BaseException | None = None
        self.done = False

    def take(self, logits: np.ndarray) -> bool:
        """Use the next rows [n, vocab] f32. True: these were the last."""
        start, end = self.sequence.scored, self.sequence.scored + len(logits)
        following = self.sequence.tokens[start + 1 : end + 1]  # the last row of all predicts what is not there
        self.logs[start : start + len(following)] = log_likelihood(logits[: len(following)], following)
        self.sequence.scored = end
        self.done = end == len(self.sequence.tokens)
        return self.done


def log_likelihood(logits: np.ndarray, following: Sequence[int]) -> npt.NDArray[np.float64]:
    """Log p of the token that follows each row: logits [n, vocab] f32, following [n] -> [n] f64."""
    rows = logits.astype(np.float64)
    rows -= rows.max(axis=1, keepdims=True)
    chosen: npt.NDArray[np.float64] = rows[np.arange(len(rows)), following] - np.log(np.exp(rows).sum(axis=1))
    return chosen


def perplexity(model: Model, ids: Sequence[int]) -> float:
    """Exp of the mean of -log p(token | those before it), in pieces of the model's context; the first of each is given.

    Raises:
        InvalidRequest: fewer than two tokens, or an id that is not in the vocabulary.
        DeviceError: while running.
    """
    if len(ids) < 2:
        raise InvalidRequest("perplexity", f"a text of at least two tokens was expected, it has {len(ids)}")
    pieces = [list(ids[i : i + model.context]) for i in range(0, len(ids), model.context)]
    total, count = 0.0, 0
    for piece in pieces:
        if len(piece) < 2:
            continue
        model.engine.check(piece, 0)
        request = Likelihood(piece)
        model.engine.run([request])
        total += float(request.logs.sum())
        count += len(piece) - 1
    return math.exp(-total / count)
