"""One request on its way through the engine: its sequence, how its tokens are chosen, and what came out so far."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from time import perf_counter

import numpy as np

from datong.engine.detokenizer import Detokenizer, StopStrings
from datong.engine.guide import Guide
from datong.engine.results import LENGTH, STOP, Chunk, Result
from datong.engine.sampler import History, Sampled, SamplingParams, make_rng, sample
from datong.engine.sequence import Sequence


class Request:
    """A generation. The engine calls `take`; the caller reads `chunks` and `result`.

    Args:
        tokens: the prompt, at least one.
        limit: tokens at most, prompt included.
        params: how tokens are chosen.
        detokenizer: None gives token ids only.
        stops: strings that end the answer; never part of the text.
        stop_ids: tokens that end the answer.
        index: which prompt of a batch.
        guide: says which tokens may come; None: all.
    """

    def __init__(
        self,
        tokens: list[int],
        limit: int,
        params: SamplingParams,
        detokenizer: Detokenizer | None = None,
        stops: Iterable[str] = (),
        stop_ids: frozenset[int] = frozenset(),
        index: int = 0,
        guide: Guide | None = None,
    ) -> None:
        self.sequence = Sequence(tokens, limit, owner=self)
        self._guide = guide
        self.params, self.index = params, index
        self.chunks: deque[Chunk] = deque()
        self.result = Result(prompt_tokens=len(tokens), logprobs=None if params.logprobs is None else [])
        self.error: BaseException | None = None
        self.done = False
        self._detokenizer, self._stops, self._stop_ids = detokenizer, StopStrings(stops), stop_ids
        self._history = History(tokens[:])
        self._rng = make_rng(params.seed) if params.temperature else None
        self._started = self._first = perf_counter()

    def take(self, logits: np.ndarray) -> bool:
        """Choose the next token from its logits [1, vocab] f32. True: this was the last.

        Raises DeviceError, InvalidRequest: see sampler.py.
        """
        allowed = self._guide.allowed() if self._guide else None
        sampled = sample(logits[0], self.params, self._history, self._rng, allowed)
        sequence = self.sequence
        if self._guide and not self._guide.fits(sampled.token, sequence.limit - len(sequence.tokens)):
            sampled = sample(logits[0], self.params, self._history, self._rng, self._guide.allowed())
        token = sampled.token
        sequence.tokens.append(token)
        if self.params.shifts:
            self._history.add(token)
        complete = self._guide.accept(token) if self._guide else False
        text, reason = self._text_of(token)
        if reason is None and complete:
            text, reason = text + self._rest(), LENGTH if self._guide and self._guide.cut else STOP
        if reason is None and len(sequence.tokens) >= sequence.limit:
            text, reason = text + self._rest(), LENGTH
        self._note(sampled, text, reason)
        return self.done

    def end(self, reason: str) -> Chunk:
        """Stop early, as when a deadline passes: what was held back, and `reason`. The sequence is the caller's."""
        text = self._rest()
        self.result.text += text
        self.result.finish_reason, self.done = reason, True
        return Chunk(text, (), None, reason, self.index)

    def _text_of(self, token: int) -> tuple[str, str | None]:
        """Text that this token makes certain, and STOP if it ends the answer."""
        if token in self._stop_ids:
            return self._rest(), STOP
        if self._detokenizer is None:
            return "", None
        text = self._stops.push(self._detokenizer.push(token))
        return text, STOP if self._stops.found is not None else None

    def _rest(self) -> str:
        """Everything held back, at the end of the answer."""
        if self._detokenizer is None:
            return ""
        text = self._stops.push(self._detokenizer.finish())
        return text + self._stops.finish()

    def _note(self, sampled: Sampled, text: str, reason: str | None) -> None:
        now, result = perf_counter(), self.result
        timings = result.timings
        if not result.tokens:
            self._first = now
            result.cached_tokens = max(0, self.sequence.cached)
            timings.prefill_tokens = result.prompt_tokens - result.cached_tokens
            timings.prefill_seconds = now - self._started
        else:
            timings.decode_tokens += 1
            timings.decode_seconds = now - self._first
        logprobs = None if sampled.logprob is None else (sampled,)
        chunk = Chunk(text, (sampled.token,), logprobs, reason, self.index)
        result.tokens.append(sampled.token)
        result.text += text
        if logprobs is not None and result.logprobs is not None:
            result.logprobs.append(sampled)
        result.finish_reason = reason
        self.done = reason is not None
        self.chunks.append(chunk)


class Score:
    """Teacher forcing: logits of every token of `tokens`, into `logits` [T, vocab] f32."""

    def __init__(self, tokens: list[int], vocab: int) -> None:
        self.sequence = Sequence(tokens, len(tokens), score=True, owner=self)
        self.logits = np.empty((len(tokens), vocab), np.float32)
        self.error: BaseException | None = None
        self.done = False

    def take(self, logits: np.ndarray) -> bool:
        """Keep the next rows [n, vocab] f32. True: these were the last."""
        start = self.sequence.scored
        end = start + len(logits)
        self.logits[start:end] = logits
        self.sequence.scored = end
        self.done = end == len(self.logits)
        return self.done
