"""Guessing tokens ahead, so that one step of the model confirms several.

A guess is never more than that: the engine samples each token from the model's own logits, as it would without guesses,
and keeps a guess only where it is the same token.

    heads    the model's own heads for speculation (multi-token prediction): head k reads what the model, or head
             k - 1, gave for a token, and the token k + 1 after it; it guesses the one after that
    lookup   what followed the last tokens when they stood in the text before

Heads run after each step, on the tokens of that step that counted, with caches of their own in the same blocks. Their
entries for a rejected guess stay until the block is reused: they cost a worse guess, never a wrong token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from datong.engine import sequence as sequences
from datong.engine.runner import Runner
from datong.engine.scheduler import Work
from datong.spec.program import Step

HIDDEN, HIDDEN_OUT = "hidden", "hidden_out"
LOOKUP_TOKENS = 4  # guesses of one step
LOOKUP_LENGTHS = (4, 3, 2)  # of what must have stood there before, longest first
LOOKUP_REACH = 8192  # tokens back

Done = Sequence[tuple[Work, int]]  # the works of a step, each with how many of its tokens counted


class Guesser(Protocol):
    """Sets `guesses` of the sequences that decode next."""

    def guess(self, step: Step, done: Done) -> None:
        """After a step: `done` in the order of the step's sequences."""


def wants(sequence: sequences.Sequence) -> bool:
    """Does it decode next, and is there room for a guess?"""
    running = sequence.state is sequences.State.RUNNING
    return running and not sequence.score and sequence.pending == 1 and len(sequence.tokens) + 1 < sequence.limit


class Lookup:
    """Guesses that the text repeats itself (prompt lookup decoding)."""

    def guess(self, step: Step, done: Done) -> None:
        """See Guesser."""
        for work, _ in done:
            if wants(work.sequence):
                work.sequence.guesses = repeated(work.sequence.tokens)


def repeated(tokens: Sequence[int]) -> list[int]:
    """What followed the last tokens where they stood last before; empty when they are new."""
    data = np.asarray(tokens[-LOOKUP_REACH:], np.int32)
    text = data.tobytes()
    for length in LOOKUP_LENGTHS:
        if len(data) <= length:
            continue
        tail, end = text[-4 * length :], len(text) - 4
        while (at := text.rfind(tail, 0, end)) >= 0:
            if at % 4 == 0:
                after = at // 4 + length
                return [int(t) for t in data[after : after + LOOKUP_TOKENS]]
            end = at + 4 * length - 1
    return []


class Heads:
    """Runs the heads for speculation.

    Args:
        model: whose steps are followed; tells its hidden values.
        heads: a runner for each, with the blocks of `model`.
    """

    def __init__(self, model: Runner, heads: Sequence[Runner]) -> None:
        self._heads = tuple(heads)
        self._hidden: np.ndarray | None = None
        model.watch = self._keep

    def _keep(self, outputs: Mapping[str, np.ndarray]) -> None:
        if HIDDEN in outputs:
            self._hidden = outputs[HIDDEN]

    def guess(self, step: Step, done: Done) -> None:
        """See Guesser."""
        if self._hidden is None:
            return
        chosen = [
            (index, work.sequence, count)
            for index, (work, count) in enumerate(done)
            if count and not work.sequence.score and work.sequence.state is sequences.State.RUNNING
        ]
        if not chosen:
            return
        places = np.concatenate([step.query_starts[i] + np.arange(n) for i, _, n in chosen])
        hidden = np.ascontiguousarray(self._hidden[places])
        asking = [k for k, (_, sequence, _) in enumerate(chosen) if wants(sequence)]
        guesses: list[list[int]] = [[] for _ in chosen]
        for number, head in enumerate(self._heads):
            part = _step(step, chosen, places, number, guesses, asking)
            seen: dict[str, np.ndarray] = {}
            head.watch = seen.update
            logits = head.run(part, {HIDDEN: hidden})
            for row, k in enumerate(asking):
                guesses[k].append(int(logits[row].argmax()))
            hidden = seen[HIDDEN_OUT]
        for k in asking:
            chosen[k][1].guesses = guesses[k]


def _step(
    step: Step,
    chosen: Sequence[tuple[int, sequences.Sequence, int]],
    places: np.ndarray,
    number: int,
    guesses: Sequence[Sequence[int]],
    asking: Sequence[int],
) -> Step:
    """The step of head `number`: the same places as the model's, each with the token `number` + 1 after its own."""
    ids = np.empty(len(places), np.int64)
    starts = np.zeros(len(chosen) + 1, np.int64)
    np.cumsum([count for _, _, count in chosen], out=starts[1:])
    lens = np.empty(len(chosen), np.int64)
    for k, (_, sequence, count) in enumerate(chosen):
        first = sequence.computed - count + number + 1
        known = [*sequence.tokens[first : first + count], *guesses[k]][:count] or sequence.tokens[-1:]
        ids[starts[k] : starts[k + 1]] = known + [known[-1]] * (count - len(known))
        lens[k] = sequence.computed
    rows = np.ascontiguousarray(starts[1:][asking] - 1)
    tables = np.ascontiguousarray(step.block_tables[[i for i, _, _ in chosen]])
    return Step(ids, np.ascontiguousarray(step.positions[places]), starts, lens, tables, rows)
