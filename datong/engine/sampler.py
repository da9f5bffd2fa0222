"""Logits to a token: a pure function of (logits, parameters, history, random state).

Order, as in transformers where it has the step too:

    0. allowed                what a guide forbids becomes -inf                                    (guide.py)
    1. repetition_penalty     tokens of prompt and answer:  x > 0 ? x / r : x * r           (Keskar et al. 2019)
    2. frequency_penalty      x -= f * (times in the answer);   presence_penalty  x -= p if in the answer   (OpenAI)
    3. logit_bias             x += bias
    4. temperature            0: take the largest, lowest id first; otherwise x /= temperature
    5. top_k                  keep the k largest, and ties with the k-th
    6. top_p                  keep the fewest whose probabilities, renormalised after 5, reach p, and ties with the last
    7. min_p                  keep those with probability >= min_p * the largest one's
    8. draw with one `rng.random()` per token, so that a seed gives the same answer alone and in a batch

Log-probabilities are the model's own: log softmax of the logits as they came, before step 1.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from datong.errors import DeviceError, InvalidRequest

MAX_LOGPROBS = 1000  # rows of a table that somebody may want to read; bounds what a request can ask for
HEAD = 256  # candidates looked at first for top_p; sixteen times as many until they hold enough probability
TINY = 1e-30  # smallest temperature that is told from 0 in f32; long before it every draw is the largest logit


@dataclass(frozen=True)
class SamplingParams:
    """How one request wants its tokens chosen. Raises InvalidRequest when a value is out of range."""

    temperature: float = 0.0  # 0: greedy
    top_k: int = 0  # 0: all
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    logprobs: int | None = None  # how many alternatives to report; 0: of the chosen token only; None: none

    def __post_init__(self) -> None:
        _within("temperature", self.temperature, 0.0, 1e6)
        _within("top_k", self.top_k, 0, 2**31, whole=True)
        _within("top_p", self.top_p, 0.0, 1.0, open_low=True)
        _within("min_p", self.min_p, 0.0, 1.0)
        _within("repetition_penalty", self.repetition_penalty, 0.0, 1e6, open_low=True)
        _within("presence_penalty", self.presence_penalty, -1e6, 1e6)
        _within("frequency_penalty", self.frequency_penalty, -1e6, 1e6)
        if self.seed is not None:
            _within("seed", self.seed, 0, 2**64 - 1, whole=True)
        if self.logprobs is not None:
            _within("logprobs", self.logprobs, 0, MAX_LOGPROBS, whole=True)
        for token, bias in self.logit_bias.items():
            _within("logit_bias token", token, 0, 2**31, whole=True)
            if not isinstance(bias, (int, float)) or math.isnan(bias) or bias == math.inf:
                raise InvalidRequest("sample", f"logit_bias should be a number for token {token}, got `{bias}`")

    @property
    def greedy(self) -> bool:
        """One argmax decides: no step changes which logit is largest, and none is reported."""
        return self.temperature == 0 and self.logprobs is None and not self.shifts

    @property
    def shifts(self) -> bool:
        """Steps 1 to 3 change something."""
        return bool(self.logit_bias or self.repetition_penalty != 1 or self.presence_penalty or self.frequency_penalty)


class History:
    """Tokens that the penalties look at. Counts the answer as it grows."""

    def __init__(self, prompt: list[int]) -> None:
        self._prompt = prompt
        self.counts: Counter[int] = Counter()
        self._seen: set[int] | None = None

    def add(self, token: int) -> None:
        """Note a sampled token."""
        self.counts[token] += 1

    def seen(self) -> np.ndarray:
        """Distinct tokens of prompt and answer, [n] int64."""
        if self._seen is None:
            self._seen = set(self._prompt)
        self._seen.update(self.counts)
        return np.fromiter(self._seen, np.int64, len(self._seen))


@dataclass(frozen=True)
class Sampled:
    """One chosen token; `logprob` and `top` (best first) only where they were asked for."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


def make_rng(seed: int | None) -> np.random.Generator:
    """The random state of one request; without a seed, from the operating system."""
    return np.random.Generator(np.random.PCG64(seed))


def sample(
    logits: np.ndarray,
    params: SamplingParams,
    history: History,
    rng: np.random.Generator | None,
    allowed: np.ndarray | None = None,
) -> Sampled:
    """Choose the next token.

    Args:
        logits: [vocab] f32, not changed.
        params: see the module for the order of the steps.
        history: tokens of prompt and answer so far.
        rng: advanced by one number when temperature > 0; None: made anew, and not for temperature 0.
        allowed: [n] bool, of the first n tokens; what is false, and all beyond, is forbidden. None: all are allowed.

    Raises:
        DeviceError: the logits hold NaN, or none is finite.
        InvalidRequest: `logit_bias` names a token beyond the vocabulary.
    """
    x = logits if allowed is None else _masked(logits, allowed)
    if params.greedy:
        return Sampled(_largest(x))
    x = _shifted(x, params, history) if params.shifts else x
    best = _largest(x)
    token = best if params.temperature == 0 else _draw(x, float(x[best]), params, rng or make_rng(params.seed))
    if params.logprobs is None:
        return Sampled(token)
    return _with_logprobs(logits, token, params.logprobs)


def _masked(logits: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """Step 0: [vocab] f32. Raises InvalidRequest when nothing is left."""
    x = np.full_like(logits, -np.inf)
    size = min(len(x), len(allowed))
    mask = allowed[:size]
    if not mask.any():
        raise InvalidRequest("guide", "no token continues the text as the grammar wants it", "use a simpler grammar")
    x[:size][mask] = logits[:size][mask]
    return x


def _largest(x: np.ndarray) -> int:
    """Index of the largest logit; NaN counts as largest to argmax, so one look at the value finds it."""
    best = int(x.argmax())
    if not math.isfinite(x[best]):
        raise DeviceError(
            "sample", f"logits should be finite, the largest is `{x[best]}`", "the model or kernel is broken"
        )
    return best


def _shifted(logits: np.ndarray, params: SamplingParams, history: History) -> np.ndarray:
    """Steps 1 to 3, on a copy."""
    x = logits.astype(np.float32, copy=True)
    if params.repetition_penalty != 1:
        seen = history.seen()
        values = x[seen]
        r = np.float32(params.repetition_penalty)
        x[seen] = np.where(values > 0, values / r, values * r)
    if history.counts and (params.frequency_penalty or params.presence_penalty):
        tokens = np.fromiter(history.counts.keys(), np.int64, len(history.counts))
        times = np.fromiter(history.counts.values(), np.float32, len(history.counts))
        x[tokens] -= np.float32(params.frequency_penalty) * times + np.float32(params.presence_penalty)
    if params.logit_bias:
        worst = max(params.logit_bias)
        if worst >= x.size:
            raise InvalidRequest("sample", f"logit_bias token should be below {x.size}, got {worst}")
        tokens = np.fromiter(params.logit_bias.keys(), np.int64, len(params.logit_bias))
        x[tokens] += np.fromiter(params.logit_bias.values(), np.float32, len(params.logit_bias))
    return x


def _draw(x: np.ndarray, top: float, params: SamplingParams, rng: np.random.Generator) -> int:
    """Steps 4 to 8. `top` is the largest of x. Probabilities are relative to its own: exp((x - top) / temperature)."""
    temperature = np.float32(max(params.temperature, TINY))
    ids: np.ndarray | None = None  # None: all tokens
    if 0 < params.top_k < x.size:
        kth = np.partition(x, x.size - params.top_k)[x.size - params.top_k]
        ids = np.flatnonzero(x >= kth)
        x = x[ids]
    with np.errstate(over="ignore"):  # differences first: what overflows is -inf, never NaN
        scaled = (x - np.float32(top)) / temperature
    if params.min_p > 0 and params.top_p == 1:  # alone it needs no sum, so most exponentials can be saved
        ids, scaled = _keep(scaled >= math.log(params.min_p), ids, scaled)
    p = np.exp(scaled)
    if params.top_p < 1:
        ids, p = _keep(p >= _nucleus_edge(p, params.top_p), ids, p)
        ids, p = _keep(p >= params.min_p, ids, p)
    cumulative = p.cumsum(dtype=np.float64)
    # `right` skips entries of probability 0; min() guards the one case that rounding puts the draw at the end.
    drawn = int(cumulative.searchsorted(rng.random() * cumulative[-1], side="right"))
    if drawn >= p.size:
        drawn = int(np.flatnonzero(p)[-1])
    return drawn if ids is None else int(ids[drawn])


def _keep(mask: np.ndarray, ids: np.ndarray | None, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ids and values where `mask` [n] bool holds."""
    kept = np.flatnonzero(mask)
    return kept if ids is None else ids[kept], values[kept]


def _nucleus_edge(p: np.ndarray, top_p: float) -> np.floating:
    """The smallest probability of the fewest entries of p [n] f32 (unnormalised) that together reach `top_p`."""
    goal = top_p * float(p.sum(dtype=np.float64))
    size = HEAD
    while True:
        head = np.sort(np.partition(p, p.size - size)[p.size - size :] if size < p.size else p)[::-1]
        cumulative = head.cumsum(dtype=np.float64)
        if size >= p.size or cumulative[-1] >= goal:
            edge: np.floating = head[min(int(cumulative.searchsorted(goal)), head.size - 1)]
            return edge
        size *= 16


def _with_logprobs(logits: np.ndarray, token: int, count: int) -> Sampled:
    """Log softmax of the untouched logits, for the chosen token and the `count` best."""
    x = logits.astype(np.float64)
    x -= x.max()
    x -= math.log(float(np.exp(x).sum()))
    count = min(count, x.size)
    best = np.argpartition(x, x.size - count)[x.size - count :] if count else np.empty(0, np.int64)
    best = best[np.lexsort((best, -x[best]))]
    return Sampled(token, float(x[token]), tuple((int(i), float(x[i])) for i in best))


def _within(name: str, value: object, low: float, high: float, *, whole: bool = False, open_low: bool = False) -> None:
    """Raise InvalidRequest unless value is a number in [low, high], or (low, high] with `open_low`."""
    kinds = (int, np.integer) if whole else (int, float, np.integer, np.floating)
    good = isinstance(value, kinds) and not isinstance(value, bool) and low <= value <= high
    if not good or (open_low and value == low):
        kind = "a whole number" if whole else "a number"
        low_text = f"above {low:g}" if open_low else f"at least {low:g}"
        raise InvalidRequest("sample", f"{name} should be {kind}, {low_text} and at most {high:g}, got `{value}`")
