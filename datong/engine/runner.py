"""A program on its devices: the executables of its parts, one paged cache each, and one `run` through all of them.

Blocks are numbered alike for all parts, and so are window blocks and state slots. Where parts want blocks of different
sizes, a logical block holds the least common multiple of tokens, and its number is spread over the part's own smaller
blocks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from datong.engine.windows import enough
from datong.errors import BackendMissing, DeviceError
from datong.spec.backend import Backend, Cache, Executable, Placed, option_names
from datong.spec.caches import cache_bytes, state_bytes
from datong.spec.program import STATE_KINDS, Part, Program, Step

OF_STEP = frozenset({"ids", "positions", "rows"})
MAX_BLOCK = 4096  # tokens of a logical block; larger ones waste the cache of every short sequence
STATES = 8  # sequences with states that can always run at once …
STATE_TOKENS = 1024  # … and one more for each so many tokens of the cache: states of a large model are 10-100 MB each


@dataclass
class _Stage:
    """One part, ready to run."""

    part: Part
    executable: Executable
    cache: Cache | None
    inputs: tuple[str, ...]  # from earlier parts
    spread: int = 1  # own blocks per logical block
    windows: str = ""  # own: it has window blocks; only: all its blocks are; "": it takes no window blocks


class Runner:
    """Runs steps. Not for two threads at once.

    Args:
        program: compiled.
        backends: one for each name that a part asks for.
        tokens: tokens that the caches hold, rounded up to whole blocks.
        options: for `Backend.compile`; see spec/backend.py. Each backend is given those that it knows.
        block_size: tokens of a logical block, where another runner has chosen it.
        sequences: that may run at once, at most; fewer where states make them costly.
        step_tokens: of one step, at most.
        windows: may windows have blocks of their own?

    Raises:
        BackendMissing, Unsupported, DeviceError.
    """

    def __init__(
        self,
        program: Program,
        backends: Sequence[Backend],
        tokens: int,
        options: Mapping[str, str] | None = None,
        block_size: int | None = None,
        *,
        sequences: int = 64,
        step_tokens: int = 512,
        windows: bool = True,
    ) -> None:
        self.program, self.backends = program, tuple(backends)
        by_name = {backend.name: backend for backend in backends}
        self._stages = [_open(part, by_name, program.package, options or {}) for part in program.parts]
        self.block_size = self._common_block() if block_size is None else block_size
        if self.block_size % self._common_block():
            raise DeviceError("cache", f"blocks of {block_size} tokens should hold those of {self._common_block()}")
        self.blocks = -(-max(1, tokens) // self.block_size)
        self.step_tokens, self.sequences = step_tokens, sequences
        self._size_states()
        self._size_windows(windows)
        for stage in self._stages:
            if stage.cache is not None:
                stage.spread = self.block_size // stage.cache.layout.block_size
                stage.cache = self._create(stage)
        self._logits = _logits_name(program)
        self.hidden: np.ndarray | None = None  # [T, n] f32 of the last step, valid until the next; None: not compiled
        self.watch: Callable[[Mapping[str, np.ndarray]], None] | None = None  # told the outputs of each part

    def run(self, step: Step, given: Mapping[str, np.ndarray] | None = None) -> np.ndarray:
        """Run one step.

        Args:
            step: `block_tables` holds logical blocks.
            given: inputs that the step does not bring, such as `hidden` of a head for speculation.

        Returns:
            [R, vocab] f32, valid until the next run.

        Raises:
            DeviceError, ShapeError, DtypeError: from the backend; the cache blocks of this step then hold anything.
        """
        values: dict[str, np.ndarray] = dict(given or {})
        for stage in self._stages:
            given = {name: values[name] for name in stage.inputs}
            own = _own(step, stage)
            outputs = stage.executable.run(own, stage.cache, given)
            self.hidden = outputs.get("hidden", self.hidden)
            if self.watch is not None:
                self.watch(outputs)
            if len(self._stages) == 1:
                return outputs[self._logits]
            # An output is valid until its part runs again, which is after this step.
            values.update(outputs)
        return values[self._logits]

    def placement(self) -> list[tuple[str, Placed]]:
        """(backend, where the node runs), in order of execution."""
        return [(stage.part.backend, placed) for stage in self._stages for placed in stage.executable.placement()]

    def memory(self) -> dict[str, int]:
        """Bytes by use, summed over the parts; `cache` is what the caches may grow to."""
        total: dict[str, int] = {}
        for stage in self._stages:
            for use, size in stage.executable.memory().items():
                total[use] = total.get(use, 0) + size
        total["cache"] = sum(self._cache_bytes(stage) for stage in self._stages)
        return total

    def cache_dtype(self) -> str:
        """Element type of the token caches of the first part that has one; empty: none has."""
        return next((s.cache.layout.dtype for s in self._stages if s.cache is not None), "")

    def executables(self) -> list[tuple[Part, Executable]]:
        """The parts and what runs them, in order of execution."""
        return [(stage.part, stage.executable) for stage in self._stages]

    def copy_state(self, source: int, target: int) -> None:
        """Copy one state slot in all parts. Raises DeviceError."""
        for stage in self._stages:
            if stage.cache is not None and state_bytes(stage.part.caches):
                stage.cache.copy_state(source, target)

    def _cache_bytes(self, stage: _Stage) -> int:
        if stage.cache is None:
            return 0
        own = self.window_blocks * stage.spread if stage.windows == "own" else 0
        return cache_bytes(stage.cache.layout, stage.cache.blocks, own, self.states)

    def _size_states(self) -> None:
        """`states`: slots, half of them for snapshots; 0: there are no states."""
        self.states = 0
        if any(state_bytes(part.caches) for part in self.program.parts):
            cached = self.blocks * self.block_size
            self.sequences = min(self.sequences, max(STATES, cached // STATE_TOKENS), self.blocks)
            self.states = 2 * self.sequences

    def _size_windows(self, wanted: bool) -> None:
        """`window`: the longest of those with blocks of their own, `window_blocks`; 0: all share `blocks`."""
        self.window = self.window_blocks = 0
        for stage in self._stages if wanted else ():
            kinds = {spec.kind for spec in stage.part.caches} - STATE_KINDS
            if stage.cache is not None and "window" in kinds:
                knows = stage.cache.layout.bytes_per_window_block > 0
                stage.windows = "own" if knows else "only" if kinds == {"window"} else ""
        window = max((s.window for stage in self._stages if stage.windows for s in stage.part.caches), default=0)
        blocks = enough(self.sequences, window, self.step_tokens, self.block_size)
        if window and blocks < self.blocks:
            self.window, self.window_blocks = window, blocks
        else:  # nothing to be saved
            for stage in self._stages:
                stage.windows = ""

    def _create(self, stage: _Stage) -> Cache:
        states = self.states if state_bytes(stage.part.caches) else 0
        if stage.windows == "only":
            return stage.executable.create_cache(self.window_blocks * stage.spread, 0, states)
        windows = self.window_blocks * stage.spread if stage.windows else 0
        return stage.executable.create_cache(self.blocks * stage.spread, windows, states)

    def _common_block(self) -> int:
        sizes = [stage.cache.layout.block_size for stage in self._stages if stage.cache is not None]
        size = math.lcm(*sizes) if sizes else 16
        if size > MAX_BLOCK:
            parts = ", ".join(f"{s.part.backend} {s.cache.layout.block_size}" for s in self._stages if s.cache)
            raise DeviceError(
                "cache",
                f"parts should have block sizes with a common multiple up to {MAX_BLOCK}, they have {parts}",
                "run the whole model on one device",
            )
        return size


def _open(part: Part, backends: Mapping[str, Backend], package: str, options: Mapping[str, str]) -> _Stage:
    """Compile one part. Its first cache, of one block, only tells the layout."""
    backend = backends.get(part.backend)
    if backend is None:
        raise BackendMissing("run", f"a part wants backend `{part.backend}`, there are {', '.join(sorted(backends))}")
    names = option_names(backend)
    known = options if names is None else {name: value for name, value in options.items() if name in names}
    executable = backend.compile(part, package, known)
    cache = executable.create_cache(1) if part.caches else None
    return _Stage(part, executable, cache, tuple(name for name in part.inputs if name not in OF_STEP))


def _own(step: Step, stage: _Stage) -> Step:
    """The step as one part has it: its own blocks, windows where it looks for them, slots if it has states."""
    windows = step.window_tables
    if windows is not None and stage.windows != "own":
        tables = windows if stage.windows == "only" else step.block_tables
        step = replace(step, block_tables=tables, window_tables=None)
    if stage.spread == 1:
        return step
    windows = step.window_tables
    return replace(
        step,
        block_tables=_spread(step.block_tables, stage.spread),
        window_tables=None if windows is None else _spread(windows, stage.spread),
    )


def _spread(tables: np.ndarray, count: int) -> np.ndarray:
    """Each logical block replaced by its `count` own blocks; -1 stays -1."""
    own = tables[:, :, None] * count + np.arange(count, dtype=np.int32)
    own[tables < 0] = -1
    return np.ascontiguousarray(own.reshape(len(tables), -1), np.int32)


def _logits_name(program: Program) -> str:
    """The output of the last part that is the model's answer."""
    outputs = program.parts[-1].outputs if program.parts else ()
    if len(outputs) != 1 and "logits" not in outputs:
        raise DeviceError("run", f"the last part should give the logits, it gives {', '.join(outputs) or 'nothing'}")
    return outputs[0] if len(outputs) == 1 else "logits"
