"""Log-probabilities of a prompt's own tokens: what `echo` with `logprobs` asks for, and evaluation harnesses read.

Rows of logits are reduced as they come: a prompt of 4,096 tokens would need 0.8 GB for them otherwise.
"""

from __future__ import annotations

import math

import numpy as np

from datong.engine.sampler import Sampled
from datong.engine.sequence import Sequence
from datong.errors import DeviceError


class PromptScore:
    """Teacher forcing of `tokens`; `sampled[i]` says how likely token i + 1 was, and the `top` likeliest there."""

    def __init__(self, tokens: list[int], top: int) -> None:
        self.sequence = Sequence(tokens, len(tokens), score=True, owner=self)
        self.top = top
        self.sampled: list[Sampled] = []
        self.error: BaseException | None = None
        self.done = False

    def take(self, logits: np.ndarray) -> bool:
        """Reduce the next rows [n, vocab] f32. True: these were the last. Raises DeviceError for NaN."""
        start, tokens = self.sequence.scored, self.sequence.tokens
        for i, row in enumerate(logits, start):
            if i + 1 < len(tokens):
                self.sampled.append(_row(row, tokens[i + 1], self.top))
        self.sequence.scored = start + len(logits)
        self.done = self.sequence.scored == len(tokens)
        return self.done


def _row(logits: np.ndarray, token: int, count: int) -> Sampled:
    """Log softmax of [vocab] f32 at `token` and at the `count` largest, best first."""
    highest = float(logits.max())
    if not math.isfinite(highest):
        raise DeviceError("score", f"logits should be finite, the largest is `{highest}`", "the model is broken")
    # f32 differences are exact enough for exp; the sum runs in f64
    total = highest + math.log(float(np.exp(logits - np.float32(highest)).sum(dtype=np.float64)))
    best = np.argpartition(logits, logits.size - count)[logits.size - count :] if count else np.empty(0, np.int64)
    best = best[np.lexsort((best, -logits[best]))]
    return Sampled(token, float(logits[token]) - total, tuple((int(i), float(logits[i]) - total) for i in best))
