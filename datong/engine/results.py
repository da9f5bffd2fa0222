"""What a caller gets: chunks while an answer grows, the result when it is there, and how long it took."""

from __future__ import annotations

from dataclasses import dataclass, field

from datong.engine.sampler import Sampled

STOP = "stop"  # the model ended its answer, or a stop string came
LENGTH = "length"  # max_tokens, or the context is full


@dataclass(frozen=True, slots=True)
class Chunk:
    """One step of an answer. `text` may be empty: half characters and beginnings of stop strings are held back."""

    text: str
    tokens: tuple[int, ...]  # as sampled, the one that ended the answer included
    logprobs: tuple[Sampled, ...] | None = None
    finish_reason: str | None = None  # set on the last chunk: STOP or LENGTH
    index: int = 0  # which prompt of a batch


@dataclass(slots=True)
class Timings:
    """Seconds and counts of one answer. Time spent waiting for other sequences counts."""

    prefill_tokens: int = 0  # prompt tokens that were computed, those found in the cache not included
    prefill_seconds: float = 0.0  # from the request to its first token
    decode_tokens: int = 0  # tokens after the first
    decode_seconds: float = 0.0  # from the first token to the last
    guessed_tokens: int = 0  # that speculation offered
    accepted_tokens: int = 0  # of those, the ones that were right

    @property
    def time_to_first_token(self) -> float:
        """Seconds."""
        return self.prefill_seconds

    @property
    def prefill_rate(self) -> float:
        """Prompt tokens per second; 0 before the first token."""
        return self.prefill_tokens / self.prefill_seconds if self.prefill_seconds else 0.0

    @property
    def decode_rate(self) -> float:
        """Tokens per second after the first; 0 for answers of one token."""
        return self.decode_tokens / self.decode_seconds if self.decode_seconds else 0.0


@dataclass(slots=True)
class Result:
    """A finished answer, or as much of one as there is."""

    text: str = ""
    tokens: list[int] = field(default_factory=list)  # as sampled, the one that ended the answer included
    finish_reason: str | None = None  # None: cancelled, or not finished yet
    logprobs: list[Sampled] | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0  # of the prompt, found in the cache
    timings: Timings = field(default_factory=Timings)

    def add(self, chunk: Chunk) -> None:
        """Append one step."""
        self.text += chunk.text
        self.tokens.extend(chunk.tokens)
        if chunk.logprobs is not None:
            self.logprobs = [*(self.logprobs or []), *chunk.logprobs]
        self.finish_reason = chunk.finish_reason
