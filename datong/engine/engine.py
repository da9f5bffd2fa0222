"""The loop: schedule -> run -> sample -> emit. One engine per model; requests share its steps.

There is no thread of its own: whoever waits for a token runs steps, for all requests at once, under the lock. Two
iterators read in turn therefore advance together, and many threads may use one model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from threading import RLock
from typing import TYPE_CHECKING

import numpy as np

from datong.engine import batch
from datong.engine.blocks import BlockPool
from datong.engine.embedding import Embedding
from datong.engine.request import Request, Score
from datong.engine.results import Chunk
from datong.engine.runner import Runner
from datong.engine.scheduler import Scheduler, Work
from datong.engine.states import StatePool
from datong.engine.windows import WindowPool
from datong.errors import Cancelled, ContextOverflow, DeviceError, InvalidRequest

if TYPE_CHECKING:
    from datong.engine.speculation import Guesser


class Engine:
    """Runs requests on a runner.

    Args:
        runner: with its caches.
        context: tokens that one sequence may have.
        max_tokens: tokens of one step, at most.
        max_rows: rows of logits of one step, at most.
        guesser: guesses tokens ahead; None: each step gives one token of a sequence.
    """

    def __init__(
        self,
        runner: Runner,
        context: int,
        *,
        max_tokens: int = 512,
        max_rows: int = 64,
        guesser: Guesser | None = None,
    ) -> None:
        self.runner = runner
        self.vocab = runner.program.vocab_size
        self.context = min(context, runner.blocks * runner.block_size)
        self.pool = BlockPool(runner.blocks, runner.block_size)
        self.windows = WindowPool(runner.window_blocks, runner.block_size, runner.window) if runner.window else None
        self.states = StatePool(runner.states) if runner.states else None
        self.scheduler = Scheduler(
            self.pool,
            max_tokens=min(max_tokens, runner.step_tokens),
            max_rows=max_rows,
            max_sequences=runner.sequences,
            windows=self.windows,
            states=self.states,
        )
        self.guesser = guesser
        self.batch = 0  # sequences of the last step
        self.lock = RLock()

    def check(self, tokens: Sequence[int], room: int) -> None:
        """Can a prompt be run, with `room` tokens of answer? Raises InvalidRequest, ContextOverflow."""
        if not tokens:
            raise InvalidRequest("generate", "at least one token was expected, the prompt has none")
        if min(tokens) < 0 or max(tokens) >= self.vocab:
            wrong = next(t for t in tokens if not 0 <= t < self.vocab)
            raise InvalidRequest("generate", f"token ids should be 0 to {self.vocab - 1}, got {wrong}")
        if len(tokens) + room > self.context:
            raise self._overflow(len(tokens), room)

    def _overflow(self, length: int, room: int) -> ContextOverflow:
        model = self.runner.program.context_length
        answer = f" and an answer of at least {room}" if room else ""
        hint = f"the model allows {model}: load it with a larger `context`, or shorten the prompt"
        if model <= self.context:
            hint = "shorten the prompt; the model allows no more"
        return ContextOverflow("generate", f"{length} tokens{answer} should fit a context of {self.context}", hint)

    def submit(self, request: Request | Score | Embedding) -> None:
        """Queue a request that `check` passed."""
        with self.lock:
            self.scheduler.add(request.sequence)

    def cancel(self, request: Request | Score | Embedding) -> None:
        """Return everything that the request holds. Harmless when it is finished."""
        with self.lock:
            self.scheduler.remove(request.sequence)
            if not request.done and request.error is None:
                request.error = Cancelled("generate", "the request was cancelled")

    def run(self, requests: Iterable[Score | Embedding]) -> None:
        """Run to the end. Raises what a step raised."""
        waiting = list(requests)
        try:
            for request in waiting:
                self.submit(request)
            for request in waiting:
                while not request.done:
                    with self.lock:
                        if not request.done:
                            self._step_for(request)
        finally:
            for request in waiting:
                self.cancel(request)

    def chunks(self, requests: Sequence[Request]) -> Iterator[Chunk]:
        """Run, and give the chunks of all requests as they come. Closing the iterator cancels what is left."""
        try:
            for request in requests:
                self.submit(request)
            live = list(requests)
            while live:
                with self.lock:
                    if not any(request.chunks for request in live):
                        self._step_for(*live)
                for request in live:
                    while request.chunks:
                        yield request.chunks.popleft()
                live = [request for request in live if request.chunks or not request.done]
        finally:
            for request in requests:
                self.cancel(request)

    def _step_for(self, *requests: Request | Score | Embedding) -> None:
        """One step on behalf of these; raises the error of the first that has one."""
        for request in requests:
            if request.error is not None:
                raise request.error
        if not self.step():
            raise DeviceError("engine", "a request should have work left, nothing was scheduled")

    def step(self) -> bool:
        """One step for everybody. False: there was nothing to do. Raises what the backend raised."""
        work = self.scheduler.schedule()
        self.batch = len(work)
        if not work:
            return False
        try:
            if self.states is not None and self.states.copies:
                self._copy_states(self.states)
            step = batch.build(work)
            logits = self.runner.run(step)
            row, done = 0, []
            for w, start in zip(work, step.query_starts, strict=False):
                if w.sequence.hidden:
                    done.append((w, self._see(w, int(start))))
                else:
                    done.append((w, self._take(w, logits[row : row + w.rows]) if w.rows else self._advance(w)))
                row += w.rows
            if self.guesser is not None:
                self.guesser.guess(step, done)
        except BaseException as error:  # also Ctrl-C: the step is half done, its requests cannot go on
            self._abandon(work, error)
            raise
        return True

    def _copy_states(self, states: StatePool) -> None:
        for source, target in states.copies:
            self.runner.copy_state(source, target)
        states.copies.clear()

    def _take(self, work: Work, logits: np.ndarray) -> int:
        """Hand out the rows; returns how many of the work's tokens counted.

        A request whose own numbers are wrong fails alone.
        """
        request, over, count = work.sequence.owner, False, work.count
        try:
            if work.guesses:
                count, over = self._confirm(work, logits)
            else:
                over = request.take(logits)
        except (DeviceError, InvalidRequest) as error:
            request.error, over = error, True
        self._advance(work, count)
        if over:
            self.scheduler.remove(work.sequence)
        return count

    def _see(self, work: Work, start: int) -> int:
        """Hand out hidden values, those of the step's tokens from `start` on; returns how many tokens counted."""
        request, over = work.sequence.owner, False
        try:
            if self.runner.hidden is None:
                said = "the program should give hidden values, it does not"
                raise DeviceError("embedding", said, "load with `hidden`")
            over = request.see(self.runner.hidden[start : start + work.count])
        except DeviceError as error:
            request.error, over = error, True
        self._advance(work)
        if over:
            self.scheduler.remove(work.sequence)
        return work.count

    def _confirm(self, work: Work, logits: np.ndarray) -> tuple[int, bool]:
        """Sample token after token as long as the guesses are right: (tokens that counted, was it the last one)."""
        request, tokens = work.sequence.owner, work.sequence.tokens
        timings = request.result.timings
        timings.guessed_tokens += len(work.guesses)
        for i, guess in enumerate((*work.guesses, None)):
            if request.take(logits[i : i + 1]):
                return i + 1, True
            if tokens[-1] != guess:
                break
            timings.accepted_tokens += 1
        return i + 1, False

    def _advance(self, work: Work, count: int | None = None) -> int:
        self.scheduler.advance(work, count)
        return work.count if count is None else count

    def _abandon(self, work: Sequence[Work], error: BaseException) -> None:
        """End every request of a failed step. After a device error no cached block is trusted any more."""
        for w in work:
            if not w.sequence.owner.done:
                w.sequence.owner.error = w.sequence.owner.error or error
            self.scheduler.remove(w.sequence)
        if isinstance(error, Exception):
            for pool in (self.pool, self.windows, self.states):
                if pool is not None:
                    pool.forget()
