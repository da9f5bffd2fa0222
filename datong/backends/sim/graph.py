"""Capture and replay of device work, as `torch.cuda.graph` does it and the vendors after it.

    with torch.npu.graph(g):          operators are recorded; nothing that they wrote is there afterwards
        y = model(x)
    x.copy_(...); g.replay(); y       the same operators, on the same memory

As on a real device: results of the capture hold nothing until the first replay; memory of the graph lives as long as
the graph; the host cannot take part (no download, no upload, no wait, no result whose size is data).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from datong.backends.sim.memory import Pool
from datong.errors import DeviceError

if TYPE_CHECKING:
    from datong.backends.sim.card import Card


@dataclass
class Record:
    """One operator of a graph: what to call, with which hidden tensors, and where its results lie."""

    call: Callable[..., Any]
    args: list[Any]
    kwargs: dict[str, Any]
    results: dict[int, torch.Tensor]  # by place among the results; not those that are views, or written in place

    def run(self) -> None:
        """Run it on the memory of the capture."""
        made = _tensors(self.call(*self.args, **self.kwargs))
        for place, target in self.results.items():
            target.copy_(made[place])


class Recorder:
    """What happens during one capture."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.own: dict[int, torch.Tensor] = {}  # storage -> a flat view of it, made within the capture
        self.saved: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # storage from before -> (view, its old bytes)

    def add(self, operator: Any, call: Callable[..., Any], args: list[Any], kwargs: dict[str, Any], made: Any) -> None:
        """Keep one call, which has just been run."""
        known = {t.untyped_storage()._cdata for t in _tensors([*args, *kwargs.values()])}
        results = {i: t for i, t in enumerate(_tensors(made)) if t.untyped_storage()._cdata not in known}
        for t in results.values():
            self.own.setdefault(t.untyped_storage()._cdata, _flat(t))
        if results or _written(operator, args, kwargs):
            self.records.append(Record(call, args, kwargs, results))

    def before_write(self, operator: Any, args: list[Any], kwargs: dict[str, Any]) -> None:
        """Save memory from before the capture that the operator is about to write: a capture runs nothing."""
        for t in _written(operator, args, kwargs):
            storage = t.untyped_storage()._cdata
            if storage not in self.own and storage not in self.saved:
                flat = _flat(t)
                self.saved[storage] = (flat, flat.clone())

    def finish(self) -> None:
        """Undo what was written, and spoil what was made."""
        for flat, old in self.saved.values():
            flat.copy_(old)
        for flat in self.own.values():
            flat.fill_(0x7F)  # a large float, and no valid index


def _written(operator: Any, args: list[Any], kwargs: dict[str, Any]) -> list[torch.Tensor]:
    """The hidden tensors that an operator may write.

    PyTorch's own schemas say it (`Tensor(a!)`). Some vendors' do not, for an `out` among others, so that an operator of
    theirs without any mark may write whatever it is given.
    """
    arguments = operator._schema.arguments
    marked = [(i, a.name) for i, a in enumerate(arguments) if a.alias_info is not None and a.alias_info.is_write]
    if not marked and operator.namespace != "aten":
        return _tensors([*args, *kwargs.values()])
    return [t for i, name in marked for t in _tensors(args[i] if i < len(args) else kwargs.get(name))]


def _flat(t: torch.Tensor) -> torch.Tensor:
    """The whole storage as bytes."""
    return torch.empty(0, dtype=torch.uint8).set_(t.untyped_storage())


def _tensors(made: Any) -> list[torch.Tensor]:
    if isinstance(made, torch.Tensor):
        return [made]
    return [t for m in made for t in _tensors(m)] if isinstance(made, (list, tuple)) else []


class Graph:
    """A captured graph of one card; the vendor's class (`torch.npu.NPUGraph`) derives from it."""

    card: Card

    def __init__(self, keep_graph: bool = False) -> None:
        self._records: list[Record] = []
        self._pool: Pool | None = None

    def capture_begin(self, pool: Any = None, capture_error_mode: str = "global") -> None:
        """Start recording. Raises DeviceError when another capture runs."""
        if self.card.recorder is not None:
            raise DeviceError(self.card.rules.device, "one graph should be captured at a time, another capture runs")
        self.reset()
        self._pool = Pool()
        self.card.meter.pool = self._pool
        self.card.recorder = Recorder()

    def capture_end(self) -> None:
        """Stop recording."""
        recorder, self.card.recorder, self.card.meter.pool = self.card.recorder, None, None
        if recorder is None:
            raise DeviceError(self.card.rules.device, "a capture should be running, there is none")
        self._records = recorder.records
        recorder.finish()

    def replay(self) -> None:
        """Run what was recorded, on the same memory."""
        if self.card.recorder is not None:
            raise self.card.rules.capture("replay", "a graph is replayed within a capture")
        if self._pool is None:
            raise DeviceError(self.card.rules.device, "a graph should be captured before its replay, it was not")
        with torch._C._InferenceMode(False), torch.no_grad():
            for record in self._records:
                record.run()

    def reset(self) -> None:
        """Free the graph; what it made is gone with it."""
        self._records = []
        if self._pool is not None:
            self.card.meter.free(self._pool)
            self._pool = None

    def pool(self) -> tuple[int, int]:
        """A handle that other captures may be given; each graph has memory of its own here."""
        return (id(self._pool), 0)

    def __del__(self) -> None:
        self.reset()


class capture:  # noqa: N801 - the vendors' `torch.npu.graph`
    """`with torch.npu.graph(g):` records; an error within leaves no graph."""

    def __init__(self, graph: Graph, pool: Any = None, stream: Any = None, **_: Any) -> None:
        self._graph = graph

    def __enter__(self) -> None:
        self._graph.capture_begin()

    def __exit__(self, kind: Any, *_: Any) -> None:
        self._graph.capture_end()
        if kind is not None:
            self._graph.reset()
