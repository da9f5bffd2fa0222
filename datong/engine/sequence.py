"""One request's state, as the scheduler sees it: tokens, how many of them are in the cache, and in which blocks."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class State(Enum):
    """Where a sequence is on its way."""

    WAITING = "waiting"  # new, or preempted: holds no block
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(eq=False, slots=True)
class Sequence:
    """Tokens of one request and what is computed of them.

    Invariants: `computed <= len(tokens)`; `blocks` cover at least `computed` tokens while RUNNING, else it is empty.
    """

    tokens: list[int]  # prompt, then what was sampled
    limit: int  # tokens at most, prompt included; fits the cache
    score: bool = False  # logits of every token are wanted, nothing is sampled
    hidden: bool = False  # with `score`: hidden values of every token, no logits
    prompt_len: int = 0
    computed: int = 0  # tokens whose K/V is in the cache
    scored: int = 0  # tokens whose logits have been handed out
    cached: int = -1  # prompt tokens that were found in the cache at first admission; -1: not admitted yet
    blocks: list[int] = field(default_factory=list)
    chain: list[int] = field(default_factory=list)  # nodes of the leading full blocks, see blocks.py
    guesses: list[int] = field(default_factory=list)  # of the next tokens, for the next step; see speculation.py
    state: State = State.WAITING
    arrival: int = -1  # set by the scheduler
    windows: list[int] = field(default_factory=list)  # window blocks, from block number `first_window` on
    first_window: int = 0
    slot: int = -1  # of its states; -1: it has none
    branch: int = 0  # tokens that were known when it was admitted, with states or without
    table: Any = None  # the batch builder's copy of `blocks`
    window_table: Any = None  # and of `windows`; None: they have changed
    owner: Any = None  # the engine's request

    def __post_init__(self) -> None:
        self.prompt_len = self.prompt_len or len(self.tokens)

    @property
    def pending(self) -> int:
        """Tokens that are known but not in the cache."""
        return len(self.tokens) - self.computed
