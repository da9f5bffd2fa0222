"""A text as one vector: the hidden values of its tokens before the head, pooled, of length 1.

    mean   over all tokens
    last   of the last token, which has seen all others

Which one a model was trained for stands in its `1_Pooling/config.json` (sentence-transformers). Values are reduced as
the steps bring them; no logits are computed.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

from datong.engine.sequence import Sequence
from datong.errors import DeviceError, InvalidRequest

Pooling = Literal["mean", "last"]
POOLINGS: tuple[str, ...] = get_args(Pooling)


class Embedding:
    """One text on its way through the engine.

    Args:
        tokens: at least one.
        pooling: see above.
    """

    def __init__(self, tokens: list[int], pooling: Pooling) -> None:
        self.sequence = Sequence(tokens, len(tokens), score=True, hidden=True, owner=self)
        self.pooling = pooling
        self.error: BaseException | None = None
        self.done = False
        self._sum: np.ndarray | None = None  # [n] f64

    def see(self, hidden: np.ndarray) -> bool:
        """Reduce the next tokens' values [t, n] f32. True: these were the last. Raises DeviceError for NaN."""
        sequence = self.sequence
        skip = sequence.scored - sequence.computed  # computed again after a preemption
        fresh = hidden[max(0, skip) :]
        if len(fresh):
            part = fresh[-1].astype(np.float64) if self.pooling == "last" else fresh.sum(0, dtype=np.float64)
            self._sum = part if self._sum is None or self.pooling == "last" else self._sum + part
            sequence.scored += len(fresh)
        self.done = sequence.scored == len(sequence.tokens)
        if self.done and not np.isfinite(self.vector).all():
            self.done = False
            raise DeviceError("embedding", "hidden values should be finite, some are not", "the model is broken")
        return self.done

    @property
    def vector(self) -> np.ndarray:
        """[n] f32 of length 1, once `done`."""
        assert self._sum is not None
        return _unit(self._sum)

    def shortened(self, size: int | None) -> np.ndarray:
        """The first `size` numbers, of length 1 again; None: all."""
        vector = self.vector
        return vector if size is None or size >= len(vector) else _unit(vector[:size].astype(np.float64))


def check_pooling(pooling: str) -> Pooling:
    """Raises InvalidRequest."""
    for known in get_args(Pooling):
        if pooling == known:
            found: Pooling = known
            return found
    raise InvalidRequest("embedding", f"pooling should be one of {', '.join(POOLINGS)}, got `{pooling}`")


def _unit(vector: np.ndarray) -> np.ndarray:
    """f64 -> f32 of length 1; zeros stay zeros."""
    length = float(np.linalg.norm(vector))
    found: np.ndarray = (vector / (length or 1.0)).astype(np.float32)
    return found
