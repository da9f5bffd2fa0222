"""Where the time of a model goes: every node of a prefill and of a decode timed, against what the machine can do."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from datong.engine.costs import Cost, Shape, cost, shapes
from datong.errors import InvalidRequest, Unsupported
from datong.spec.backend import Executable, Limits, NodeTime, Timed
from datong.spec.program import Node, Part

if TYPE_CHECKING:
    from datong.engine.model import Model


@dataclass
class Row:
    """Nodes of one operator, implementation and size."""

    op: str
    size: str  # of its matrices, `576x1536 x2`
    implementation: str
    nodes: int = 0
    seconds: float = 0.0  # of all steps
    cost: Cost = field(default_factory=Cost)

    def share(self, limits: Limits) -> float | None:
        """The least time that memory and arithmetic units allow / the time; None: a limit that matters is unknown."""
        needs = ((self.cost.bytes, limits.bytes), (self.cost.integer, limits.int8), (self.cost.real, limits.f32))
        if not self.seconds or any(amount and not rate for amount, rate in needs):
            return None
        memory, *arithmetic = (amount / rate if amount else 0.0 for amount, rate in needs)
        return max(memory, sum(arithmetic)) / self.seconds


@dataclass
class Phase:
    """One kind of step."""

    name: str  # prefill | decode
    tokens: int
    context: int  # at its beginning
    steps: int
    sequences: int
    wall: float  # seconds, with everything outside the nodes
    rows: list[Row]
    events: list[dict[str, Any]]  # Chrome trace, of its last step

    @property
    def seconds(self) -> float:
        """In the nodes."""
        return sum(row.seconds for row in self.rows)


@dataclass
class Profile:
    """What `profile` found."""

    limits: Limits
    phases: list[Phase]


def profile(
    model: Model,
    prefill: int = 512,
    decode: int = 512,
    tokens: int = 32,
    sequences: int = 1,
    threads: int | None = None,
) -> Profile:
    """Time a prompt of `prefill` tokens, and `tokens` tokens decoded after one of `decode` by `sequences` at once.

    Raises:
        InvalidRequest: they do not fit the context.
        Unsupported: the device does not time its nodes.
    """
    longest = max(prefill, decode + tokens + 1)
    if longest > model.context:
        raise InvalidRequest("profile", f"{longest} tokens should fit a context of {model.context}", "see --context")
    parts = model.engine.runner.executables()
    for part, executable in parts:
        if not isinstance(executable, Timed):
            raise Unsupported("profile", f"device `{part.backend}` does not time its nodes", "try --device cpu")
    _generate(model, 8, 2, 0)
    limits = _limits(model, threads)
    return Profile(limits, [_prefill(model, parts, prefill), _decode(model, parts, decode, tokens, sequences)])


def _limits(model: Model, threads: int | None) -> Limits:
    """Of the one device; unknown where there are several, or it does not say."""
    used = {part.backend for part in model.engine.runner.program.parts}
    found = [getattr(backend, "limits", None) for backend in model.engine.runner.backends if backend.name in used]
    if len(found) != 1 or found[0] is None:
        return Limits()
    size = min(max(model.memory()["weights_mapped"], 32 << 20), 1 << 30)
    limits: Limits = found[0](size, {} if threads is None else {"threads": str(threads)})
    return limits


def _ids(model: Model, count: int, seed: int) -> list[int]:
    return [(i * 7919 + 131 * seed + 17) % model.vocab_size for i in range(count)]


def _generate(model: Model, prompt: int, tokens: int, seed: int) -> None:
    model.generate(_ids(model, prompt, seed), max_tokens=tokens, ignore_eos=True)


_Parts = Sequence[tuple[Part, Executable]]


def _switch(parts: _Parts, on: bool) -> None:
    for _, executable in parts:
        assert isinstance(executable, Timed)
        executable.profile(on)


def _prefill(model: Model, parts: _Parts, tokens: int) -> Phase:
    _generate(model, tokens, 1, 1)
    _switch(parts, True)
    begin = time.perf_counter()
    _generate(model, tokens, 1, 2)
    wall = time.perf_counter() - begin
    _switch(parts, False)
    steps = shapes(0, tokens, model.engine.runner.step_tokens, _cache_dtype(model))
    return _phase("prefill", parts, tokens, 0, steps, wall)


def _decode(model: Model, parts: _Parts, context: int, tokens: int, sequences: int) -> Phase:
    prompts = [_ids(model, context, 3 + i) for i in range(sequences)]
    stream = model.generate(prompts, max_tokens=tokens + 1, ignore_eos=True, stream=True)
    begun: set[int] = set()
    while len(begun) < sequences:
        begun.add(next(stream).index)
    _switch(parts, True)
    begin = time.perf_counter()
    for _ in stream:
        pass
    wall = time.perf_counter() - begin
    _switch(parts, False)
    runs = max(one.runs for _, executable in parts if isinstance(executable, Timed) for one in executable.times())
    last = context + tokens
    steps = [Shape(1, 1, max(1, last - runs + i + 1), _cache_dtype(model), sequences) for i in range(runs)]
    return _phase("decode", parts, runs, context, steps, wall)


def _cache_dtype(model: Model) -> str:
    return model.engine.runner.cache_dtype() or "f16"


def _phase(name: str, parts: _Parts, tokens: int, context: int, steps: Sequence[Shape], wall: float) -> Phase:
    rows: dict[tuple[str, str, str], Row] = {}
    events: list[dict[str, Any]] = []
    for index, (part, executable) in enumerate(parts):
        assert isinstance(executable, Timed)
        for node, taken, placed in zip(part.nodes, executable.times(), executable.placement(), strict=True):
            key = (node.op, _size(node, part), placed.implementation)
            row = rows.setdefault(key, Row(*key))
            row.nodes += 1
            row.seconds += taken.seconds
            exact = "exact" in placed.implementation
            for step in steps:
                row.cost += cost(node, part.values, part.caches, step, exact)
            events.append(_event(name, index, part, node, taken))
    ordered = sorted(rows.values(), key=lambda row: -row.seconds)
    return Phase(name, tokens, context, len(steps), steps[0].sequences, wall, ordered, events)


def _size(node: Node, part: Part) -> str:
    """The matrices of a node, `[out x in]`, alike ones counted."""
    matrices = [part.values[n] for n in node.inputs if n and part.values[n].kind == "weight"]
    texts = ["x".join(str(d) for d in value.shape) for value in matrices if len(value.shape) > 1]
    counted = {text: texts.count(text) for text in texts}
    return " + ".join(text if count == 1 else f"{count} of {text}" for text, count in counted.items())


def _event(phase: str, index: int, part: Part, node: Node, taken: NodeTime) -> dict[str, Any]:
    """A complete event; times in microseconds. Source: the Trace Event Format, `ph` X."""
    return {
        "name": node.op, "cat": phase, "ph": "X", "pid": 1, "tid": index, "ts": taken.last_begin * 1e6,
        "dur": taken.last_seconds * 1e6, "args": {"node": node.name, "device": part.backend},
    }  # fmt: skip
