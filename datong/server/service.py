"""The one thread that owns an engine. Jobs come in by a queue, events go out to the event loop once per step.

Rules:

1. Nobody else touches the engine: submit, cancel and drain are messages.
2. Waiting jobs are kept here by priority, then by arrival; the engine gets as many as it can run at once. A sixteenth
   of the cache is kept for short prompts, which may go ahead of longer ones as far as they fit there: a queue of long
   ones makes no short one wait, and short ones can take no more than that from the long ones.
3. A job whose deadline has passed, or whose client has gone, gives everything back before the next step.
4. An error of a step ends the jobs of that step; the thread goes on.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
import queue
import threading
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING

from datong.errors import DatongError, DeviceError
from datong.server import errors
from datong.server.job import END, TIMEOUT, Event, Job
from datong.server.log import log_exception

if TYPE_CHECKING:
    from datong.engine.model import Model

RECENT = 64  # finished answers that the estimate of Retry-After looks at
MAX_RETRY_AFTER = 60  # seconds
SHORT = 16  # one part in so many of the cache


class Service:
    """Runs the jobs of one model.

    Args:
        model: nobody else uses it from `start` on.
        max_requests: answers at once, running and waiting.
    """

    def __init__(self, model: Model, max_requests: int) -> None:
        self.model, self.engine, self.max_requests = model, model.engine, max_requests
        self.batches = [0] * (self.engine.scheduler.max_sequences + 1)  # steps by their number of sequences
        self._inbox: queue.SimpleQueue[Job | None] = queue.SimpleQueue()  # None: look at the flags
        self._waiting: list[tuple[int, int, Job]] = []  # a heap
        self._jobs: set[Job] = set()  # the engine's thread: started ones
        self._live: set[Job] = set()  # the event loop: those that were not told their end
        self._ended: deque[float] = deque(maxlen=RECENT)
        self._order = itertools.count()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._stop = False

    # ── on the event loop ────────────────────────────────────────────────────────────────────────────────────────────

    def start(self) -> None:
        """Start the thread; events go to the running loop."""
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name="datong-engine", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        """End the thread; jobs that are left are cancelled."""
        self._stop = True
        self._inbox.put(None)
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)

    @property
    def live(self) -> int:
        """Answers that are running or waiting."""
        return sum(len(job.units) for job in self._live)

    def submit(self, job: Job) -> None:
        """Queue a job. Raises ApiError 429 when there are too many."""
        if self.live + len(job.units) > self.max_requests:
            raise errors.busy(self._retry_after())
        self._live.add(job)
        self._inbox.put(job)

    def cancel(self, job: Job) -> None:
        """Drop a job, finished or not; its cache blocks go back before the next step."""
        if job in self._live:
            self._live.discard(job)
            job.cancelled = True
            self._inbox.put(None)

    def _retry_after(self) -> int:
        """Seconds until a place is free, from how fast the last answers ended."""
        if len(self._ended) < 2:
            return 1
        rate = (len(self._ended) - 1) / max(1e-3, monotonic() - self._ended[0])
        return min(MAX_RETRY_AFTER, max(1, math.ceil(1 / rate)))

    def _hand_over(self, told: list[tuple[Job, list[Event]]]) -> None:
        for job, events in told:
            if events[-1] is END or isinstance(events[-1], BaseException):
                self._live.discard(job)
                self._ended.append(monotonic())
            job.tell(events)

    # ── in the engine's thread ───────────────────────────────────────────────────────────────────────────────────────

    @property
    def waiting(self) -> int:
        """Jobs that the engine has not got yet, and sequences that wait for cache there."""
        return len(self._waiting) + len(self.engine.scheduler.waiting)

    def _run(self) -> None:
        while True:
            self._take_in()
            if self._stop:
                break
            told: list[tuple[Job, list[Event]]] = []
            self._drop_late(told)
            self._feed()
            if self._jobs:
                self._step()
                self.batches[self.engine.batch] += 1
            self._collect(told)
            self._tell(told)
        for job in self._jobs:
            self._give_back(job)

    def _take_in(self) -> None:
        """New jobs into the heap; waits for one when there is nothing to do."""
        while True:
            try:
                job = self._inbox.get(block=not (self._jobs or self._waiting or self._stop))
            except queue.Empty:
                return
            if job is not None:
                heapq.heappush(self._waiting, (-job.priority, next(self._order), job))
            elif self._stop or not (self._jobs or self._waiting):
                return

    def _drop_late(self, told: list[tuple[Job, list[Event]]]) -> None:
        """Rule 3."""
        now = monotonic()
        for job in [job for job in self._jobs if job.cancelled or job.deadline <= now]:
            self._jobs.discard(job)
            self._give_back(job)
            if not job.cancelled:
                told.append((job, self._late(job)))
        late = [job for _, _, job in self._waiting if job.cancelled or job.deadline <= now]
        if late:
            self._waiting = [entry for entry in self._waiting if entry[2] not in late]
            heapq.heapify(self._waiting)
            told += [(job, [errors.deadline(job.seconds)]) for job in late if not job.cancelled]

    def _late(self, job: Job) -> list[Event]:
        """The deadline has passed: answers keep what they have; without any token there is none."""
        open_ = [request for request in job.requests if request.result.finish_reason is None]
        if any(not request.result.tokens for request in open_) or not job.requests:
            return [errors.deadline(job.seconds)]
        return [*(request.end(TIMEOUT) for request in open_), END]

    def _feed(self) -> None:
        """Rule 2; then the units of running jobs that may start now."""
        for job in self._jobs:
            self._start(job)
        while self._waiting and self._has_room(self._waiting[0][2], self._kept(self._waiting[0][2])):
            self._begin(heapq.heappop(self._waiting)[2])
        if self._waiting and self._kept(self._waiting[0][2]):
            self._overtake()

    def _begin(self, job: Job) -> None:
        job.started = monotonic()
        self._jobs.add(job)
        self._start(job)

    def _overtake(self) -> None:
        """Rule 2: short jobs go ahead of the first one, which has no room."""
        gone: set[Job] = set()
        for _, _, job in sorted(self._waiting)[1:]:
            if self._blocks(job) <= self._free() and self._has_room(job):
                job.overtook = True
                self._begin(job)
                gone.add(job)
        if gone:
            self._waiting = [entry for entry in self._waiting if entry[2] not in gone]
            heapq.heapify(self._waiting)

    def _blocks(self, job: Job) -> int:
        """That its prompts need."""
        return sum(self.engine.pool.needed(len(unit.sequence.tokens)) for unit in job.units)

    def _kept(self, first: Job) -> int:
        """Blocks that the first one in the queue leaves to short ones: none if it is short, or needs nearly all."""
        blocks = self.engine.pool.blocks
        return self._free() if blocks // SHORT < self._blocks(first) < blocks - 2 * (blocks // SHORT) else 0

    def _free(self) -> int:
        """Of the blocks that are kept for short jobs, what those that went ahead leave."""
        taken = sum(self._blocks(job) for job in self._jobs if job.overtook)
        return max(0, self.engine.pool.blocks // SHORT - taken)

    def _has_room(self, job: Job, kept: int = 0) -> bool:
        """Would the engine admit it now, and leave `kept` blocks free? What it has already must keep its turn."""
        scheduler, pool = self.engine.scheduler, self.engine.pool
        if not scheduler.running and not scheduler.waiting:
            return True
        if len(scheduler.running) + len(scheduler.waiting) >= scheduler.max_sequences:
            return False
        before = sum(pool.needed(len(sequence.tokens)) + 1 for sequence in scheduler.waiting)
        return before + pool.needed(len(job.units[0].sequence.tokens)) + len(scheduler.running) <= pool.available - kept

    def _start(self, job: Job) -> None:
        if job.steps and any(step.ready for step in job.steps):
            for step in job.steps:
                if step.ready:
                    self.engine.scheduler.add(step.unit.sequence)
            job.steps = [step for step in job.steps if not step.ready]

    def _step(self) -> None:
        try:
            if not self.engine.step():
                raise DeviceError("engine", "a job should have work left, nothing was scheduled")
        except Exception as error:  # rule 4
            if not isinstance(error, DatongError) or isinstance(error, DeviceError):
                log_exception("step", error)
            if not any(job.error for job in self._jobs):  # the scheduler itself failed
                for job in self._jobs:
                    for unit in job.units:
                        unit.error = error

    def _collect(self, told: list[tuple[Job, list[Event]]]) -> None:
        for job in list(self._jobs):
            self._collect_one(job, told)

    def _collect_one(self, job: Job, told: list[tuple[Job, list[Event]]]) -> None:
        """What the step brought for one job; ended ones leave."""
        events: list[Event] = []
        for request in job.requests:
            while request.chunks:
                events.append(request.chunks.popleft())
        if (error := job.error) is not None:
            events.append(error)
            self._give_back(job)
        elif job.done:
            events.append(END)
        if job.done or error is not None:
            self._jobs.discard(job)
        if events and not job.cancelled:
            told.append((job, events))

    def _give_back(self, job: Job) -> None:
        for unit in job.units:
            self.engine.scheduler.remove(unit.sequence)

    def _tell(self, told: list[tuple[Job, list[Event]]]) -> None:
        """One wake-up of the event loop for all of them."""
        if told and self._loop is not None:
            try:
                self._loop.call_soon_threadsafe(self._hand_over, told)
            except RuntimeError:  # the loop has ended: nobody waits any more
                self._stop = True
