"""What one API key may use: requests and tokens in any 60 seconds, and requests at once.

A window that slides, not one that begins at full minutes: nobody gets twice the limit around the turn of one. Tokens
are counted when an answer ends, so the last answer before the limit may go beyond it.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from time import monotonic

from datong.server.errors import ApiError

WINDOW = 60.0  # seconds


@dataclass(frozen=True, slots=True)
class Limits:
    """None: as many as the server can."""

    requests: int | None = None  # in a minute
    tokens: int | None = None  # in a minute, prompts and answers
    concurrent: int | None = None

    def __bool__(self) -> bool:
        return any(one is not None for one in (self.requests, self.tokens, self.concurrent))


class Meter:
    """One key's use. Not for several threads: the event loop's."""

    def __init__(self, limits: Limits) -> None:
        self.limits, self.running = limits, 0
        self._requests: deque[float] = deque()  # when they began
        self._tokens: deque[tuple[float, int]] = deque()  # when they were counted, how many
        self._used = 0

    def enter(self, now: float | None = None) -> None:
        """Count a request that begins. Raises ApiError 429, then it does not count."""
        now = monotonic() if now is None else now
        self._forget(now)
        limits = self.limits
        if limits.concurrent is not None and self.running >= limits.concurrent:
            raise self._refused(f"{limits.concurrent} requests at once", 1.0)
        if limits.requests is not None and len(self._requests) >= limits.requests:
            raise self._refused(f"{limits.requests} requests a minute", self._requests[0] + WINDOW - now)
        if limits.tokens is not None and self._used >= limits.tokens:
            raise self._refused(f"{limits.tokens} tokens a minute", self._tokens[0][0] + WINDOW - now)
        self._requests.append(now)
        self.running += 1

    def leave(self, tokens: int, now: float | None = None) -> None:
        """A request ended, which used so many tokens."""
        self.running -= 1
        if tokens:
            self._tokens.append((monotonic() if now is None else now, tokens))
            self._used += tokens

    def headers(self) -> dict[str, str]:
        """As OpenAI names them."""
        found = {}
        pairs = (("requests", self.limits.requests, len(self._requests)), ("tokens", self.limits.tokens, self._used))
        for name, limit, used in pairs:
            if limit is not None:
                found[f"x-ratelimit-limit-{name}"] = str(limit)
                found[f"x-ratelimit-remaining-{name}"] = str(max(0, limit - used))
        return found

    def _forget(self, now: float) -> None:
        while self._requests and self._requests[0] <= now - WINDOW:
            self._requests.popleft()
        while self._tokens and self._tokens[0][0] <= now - WINDOW:
            self._used -= self._tokens.popleft()[1]

    def _refused(self, what: str, seconds: float) -> ApiError:
        wait = max(1, math.ceil(seconds))
        text = f"This API key may use {what}; try again in {wait} s"
        headers = {"Retry-After": str(wait), **self.headers()}
        return ApiError(429, text, code="rate_limit_exceeded", kind="rate_limit_error", headers=headers)
