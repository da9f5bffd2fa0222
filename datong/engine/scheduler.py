"""Which tokens of which sequences run in the next step. Pure Python, no tensors.

Rules of one step, in this order:

1. Every sequence that waits for its next token only (decode) runs: one token each, oldest first. If one needs a block
   and none is left, the youngest running sequence is preempted: it gives its blocks back and starts again later, its
   tokens kept (recompute).
2. Waiting sequences are admitted in order of arrival while there are blocks for all their tokens and one block more per
   running sequence, so that admission does not at once cause a preemption.
3. Sequences in the middle of their prompt, new ones included, share what is left of `max_tokens` equally (chunked
   prefill). What a short one leaves goes to the longer ones, so short prompts do not wait for long ones.

Window blocks follow the tokens of each step, and every running sequence has a state slot, where the program has such
caches; both pools are large enough for all that can run. A prompt with states is cut once more at its last full block
border, and where it leaves an earlier prompt: there snapshots are kept, for one that comes again and for the next one
with that beginning. What a new prompt can take over ends where all three pools still know it.

At most half of `max_tokens` and of `max_rows` can go to decodes, so prompts always advance; the oldest sequence is
never preempted for a younger one, so everything ends.
"""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass

from datong.engine.blocks import ROOT, BlockPool
from datong.engine.sequence import Sequence, State
from datong.engine.states import StatePool
from datong.engine.windows import WindowPool


@dataclass(frozen=True, slots=True)
class Work:
    """`count` new tokens of one sequence, the last of which are `guesses`; the logits of the last `rows` are wanted."""

    sequence: Sequence
    count: int
    rows: int
    guesses: tuple[int, ...] = ()


class Scheduler:
    """Continuous batching over one block pool, and those of the other kinds of cache; None: the program has none."""

    def __init__(
        self,
        pool: BlockPool,
        *,
        max_tokens: int = 512,
        max_rows: int = 64,
        max_sequences: int = 64,
        windows: WindowPool | None = None,
        states: StatePool | None = None,
    ) -> None:
        self.pool, self.max_tokens, self.max_rows = pool, max_tokens, max_rows
        self.windows, self.states = windows, states
        pool.dropped += [other.drop for other in (windows, states) if other is not None]
        self.max_sequences = max(1, min(max_sequences, max_tokens // 2, max_rows // 2))
        self.waiting: list[Sequence] = []  # by arrival
        self.running: list[Sequence] = []  # by arrival
        self.preemptions = 0
        self._arrivals = 0

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence. `sequence.limit` must fit the whole pool."""
        sequence.arrival, self._arrivals = self._arrivals, self._arrivals + 1
        sequence.state = State.WAITING
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Finish or cancel: return everything that it holds. Harmless when repeated."""
        if sequence.state is State.RUNNING:
            self.running.remove(sequence)
            self._drop_blocks(sequence)
        elif sequence.state is State.WAITING and sequence in self.waiting:
            self.waiting.remove(sequence)
        sequence.state = State.FINISHED

    def schedule(self) -> list[Work]:
        """Choose the next step's tokens; empty only when there is nothing to do."""
        work: list[Work] = []
        self._decodes(work)
        tokens = self.max_tokens - sum(w.count for w in work)
        rows = self.max_rows - sum(w.rows for w in work)
        begun = [s for s in self.running if s.pending > 1 or s.score]
        self._prefills([*begun, *self._admit(tokens - len(begun))], work, tokens, rows)
        if self.windows is not None:
            for w in work:
                self._look_ahead(w, self.windows)
        return work

    def advance(self, work: Work, count: int | None = None) -> None:
        """Record that `work` ran: its tokens are in the cache, its full blocks can be shared.

        `count`: how many of its tokens counted; guesses that were wrong do not.
        """
        sequence, pool = work.sequence, self.pool
        sequence.computed += work.count if count is None else count
        size = pool.block_size
        done = len(sequence.chain)
        while pool.reuse and (done + 1) * size <= sequence.computed:
            parent = sequence.chain[-1] if sequence.chain else ROOT
            tokens = sequence.tokens[done * size : (done + 1) * size]
            node = pool.publish(parent, tokens, sequence.blocks[done])
            sequence.chain.append(node)
            if self.windows is not None and done >= sequence.first_window:
                self.windows.publish(node, sequence.windows[done - sequence.first_window])
            done += 1
        if self.windows is not None:
            self._trim(sequence, self.windows)
        if self.states is not None and sequence.chain and sequence.computed in self._cuts(sequence):
            self.states.snapshot(sequence.chain[-1], sequence.slot)

    def _cuts(self, sequence: Sequence) -> tuple[int, ...]:
        """Where a prompt is cut for snapshots: where it leaves another, and its last border before its last token."""
        if sequence.score or not self.pool.reuse:
            return ()
        return sequence.branch, (sequence.prompt_len - 1) // self.pool.block_size * self.pool.block_size

    def _look_ahead(self, work: Work, windows: WindowPool) -> None:
        """Window blocks for the new tokens."""
        sequence = work.sequence
        have = sequence.first_window + len(sequence.windows)
        needed = self.pool.needed(sequence.computed + work.count)
        if needed > have:
            sequence.windows += [windows.take() for _ in range(needed - have)]
            sequence.window_table = None

    def _trim(self, sequence: Sequence, windows: WindowPool) -> None:
        """Give back the window blocks that no later token sees, and those of guesses that were wrong."""
        over = sequence.first_window + len(sequence.windows) - self.pool.needed(sequence.computed + 1)
        if over > 0:
            windows.release(sequence.windows[-over:])
            del sequence.windows[-over:]
            sequence.window_table = None
        gone = min(windows.first(sequence.computed) - sequence.first_window, len(sequence.windows))
        if gone > 0:
            windows.release(sequence.windows[:gone])
            del sequence.windows[:gone]
            sequence.first_window += gone
            sequence.window_table = None

    def _decodes(self, work: list[Work]) -> None:
        """Rule 1. Guesses are taken along where they cost nobody else a token, a row or a block."""
        spare = min(self.max_tokens, self.max_rows) // 2 - len(self.running)
        for sequence in list(self.running):
            if sequence.state is not State.RUNNING or sequence.score or len(sequence.tokens) - sequence.computed != 1:
                continue
            if len(sequence.blocks) * self.pool.block_size < len(sequence.tokens) and not self._grow(sequence):
                continue
            guesses = self._guesses(sequence, spare) if sequence.guesses else ()
            spare -= len(guesses)
            work.append(Work(sequence, 1 + len(guesses), 1 + len(guesses), guesses))

    def _guesses(self, sequence: Sequence, spare: int) -> tuple[int, ...]:
        """As many of the guesses as fit the sequence's limit, the step and free blocks."""
        length, size = len(sequence.tokens), self.pool.block_size
        count = min(len(sequence.guesses), spare, sequence.limit - length - 1)
        while len(sequence.blocks) * size < length + count and self.pool.available > len(self.running):
            sequence.blocks.append(self.pool.take())
        count = max(0, min(count, len(sequence.blocks) * size - length))
        guesses, sequence.guesses = tuple(sequence.guesses[:count]), []
        return guesses

    def _grow(self, sequence: Sequence) -> bool:
        """One block more, by preemption if need be. False: `sequence` itself was the youngest and had to go."""
        while not self.pool.available:
            victim = self.running[-1]
            self._preempt(victim)
            if victim is sequence:
                return False
        sequence.blocks.append(self.pool.take())
        return True

    def _preempt(self, victim: Sequence) -> None:
        self.running.remove(victim)
        self._drop_blocks(victim)
        victim.computed, victim.state, victim.guesses = 0, State.WAITING, []
        insort(self.waiting, victim, key=lambda s: s.arrival)
        self.preemptions += 1

    def _prefills(self, sequences: list[Sequence], work: list[Work], tokens: int, rows: int) -> None:
        """Rule 3: give each an equal share of the remaining tokens; what one leaves goes to the next."""
        shortest_first = sorted(sequences, key=lambda s: s.pending)
        for left, sequence in zip(range(len(sequences), 0, -1), shortest_first, strict=True):
            count = min(-(-tokens // left), sequence.pending)
            if self.states is not None:
                cuts = (cut - sequence.computed for cut in self._cuts(sequence))
                count = min([count, *(cut for cut in cuts if cut > 0)])
            wanted = 0
            if sequence.hidden:
                pass
            elif sequence.score:
                skip = max(0, sequence.scored - sequence.computed)  # computed again after a preemption
                count = min(count, skip + rows)
                wanted = max(0, count - skip)
            elif count == sequence.pending:
                wanted = min(rows, 1)
                count -= 1 - wanted
            if count > 0:
                work.append(Work(sequence, count, wanted))
                tokens, rows = tokens - count, rows - wanted

    def _admit(self, tokens: int) -> list[Sequence]:
        """Rule 2: move waiting sequences to the running ones and give them the blocks of all their tokens."""
        admitted: list[Sequence] = []
        while self.waiting and len(self.running) < self.max_sequences and len(admitted) < tokens:
            sequence = self.waiting[0]
            blocks: list[int] = []
            if not sequence.score:  # the last token must run, its logits are wanted
                blocks, sequence.chain = self._match(sequence)
            missing = self.pool.needed(len(sequence.tokens)) - len(blocks)
            if missing + len(self.running) > self.pool.available:
                self.pool.release(blocks)
                sequence.chain = []
                break
            del self.waiting[0]
            sequence.blocks = blocks + [self.pool.take() for _ in range(missing)]
            sequence.computed = len(sequence.chain) * self.pool.block_size
            if self.windows is not None:
                sequence.first_window, sequence.windows = self.windows.hold(sequence.chain)
            if self.states is not None:
                sequence.slot = self.states.resume(sequence.chain)
            if sequence.cached < 0:
                sequence.cached = sequence.computed
            sequence.state = State.RUNNING
            insort(self.running, sequence, key=lambda s: s.arrival)
            admitted.append(sequence)
        return admitted

    def _match(self, sequence: Sequence) -> tuple[list[int], list[int]]:
        """Hold the blocks of the sequence's longest beginning that every pool knows: blocks and nodes."""
        blocks, chain = self.pool.match(sequence.tokens, len(sequence.tokens) - 1)
        known = len(chain)
        sequence.branch = known * self.pool.block_size
        others = [pool for pool in (self.windows, self.states) if pool is not None]
        while known and not all(pool.covers(chain[:known]) for pool in others):
            known -= 1
        self.pool.release(blocks[known:])
        return blocks[:known], chain[:known]

    def _drop_blocks(self, sequence: Sequence) -> None:
        self.pool.release(sequence.blocks)
        if self.windows is not None:
            self.windows.release(reversed(sequence.windows))
        if self.states is not None and sequence.slot >= 0:
            self.states.release(sequence.slot)
        sequence.blocks, sequence.chain, sequence.table = [], [], None
        sequence.windows, sequence.first_window, sequence.window_table, sequence.slot = [], 0, None, -1
