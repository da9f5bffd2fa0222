"""One API call on its way through the engine: its requests, when they may start, and what came out.

Made and read on the event loop; between `Service.submit` and the last event the engine's thread owns its requests.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import TypeAlias

from datong.engine.embedding import Embedding
from datong.engine.request import Request
from datong.engine.results import Chunk
from datong.server.scoring import PromptScore

Unit: TypeAlias = Request | PromptScore | Embedding
TIMEOUT = "timeout"  # finish_reason of an answer whose deadline passed


class End:
    """The last event of a job that went well."""


END = End()
Event: TypeAlias = Chunk | BaseException | End


@dataclass(eq=False, slots=True)
class Step:
    """A unit, and the one whose work it waits for: choices share the first one's prompt through the cache."""

    unit: Unit
    after: Unit | None = None

    @property
    def ready(self) -> bool:
        """May it start?"""
        before = self.after
        if before is None or before.done:
            return True
        return isinstance(before, Request) and bool(before.result.tokens)


class Job:
    """Requests that belong together.

    Args:
        requests: one per choice; chunks carry their `index`.
        scores: prompts that are read only: teacher-forced, for `echo` with log-probabilities, or embedded; run first.
        seconds: until the deadline.
        priority: larger ones start first.
    """

    def __init__(
        self,
        requests: Sequence[Request],
        scores: Sequence[PromptScore | Embedding] = (),
        *,
        seconds: float = float("inf"),
        priority: int = 0,
        share: bool = True,
    ) -> None:
        self.requests, self.scores = list(requests), list(scores)
        self.steps = [Step(score) for score in scores]
        for request in requests:
            first = next((r for r in requests if r.sequence.tokens == request.sequence.tokens), request)
            before: Unit | None = first if first is not request and share else None
            scored = next((s for s in scores if s.sequence.tokens == request.sequence.tokens), None)
            self.steps.append(Step(request, before or scored))
        self.units: list[Unit] = [step.unit for step in self.steps]
        self.born, self.seconds, self.priority = monotonic(), seconds, priority
        self.deadline = self.born + seconds
        self.cancelled = False  # set on the event loop
        self.overtook = False  # longer ones, that came before it
        self.started = 0.0  # when the engine took it; the engine's thread sets it
        self._events: asyncio.Queue[list[Event]] = asyncio.Queue()

    @property
    def done(self) -> bool:
        """Has everything ended?"""
        return all(unit.done for unit in self.units)

    @property
    def error(self) -> BaseException | None:
        """Of the first unit that failed."""
        return next((unit.error for unit in self.units if unit.error is not None), None)

    def tell(self, events: list[Event]) -> None:
        """Hand over what a step brought; on the event loop."""
        self._events.put_nowait(events)

    async def chunks(self) -> AsyncIterator[Chunk]:
        """What comes out. Raises what a step raised."""
        while True:
            for event in await self._events.get():
                if isinstance(event, BaseException):
                    raise event
                if isinstance(event, End):
                    return
                yield event

    async def wait(self) -> None:
        """Until everything is there. Raises what a step raised."""
        async for _ in self.chunks():
            pass
