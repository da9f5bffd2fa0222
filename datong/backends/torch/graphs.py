"""Steps of few shapes, and steps that are recorded once and replayed.

A decode step is padded to a number of sequences and to a width of block tables that are powers of two. Padding
sequences have one token, in the cache's scratch block, and nobody reads their rows. Where the adapter captures graphs
(`torch.npu.NPUGraph`, `torch.cuda.CUDAGraph`: one API), the step of each shape is captured when it comes a second time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from datong.backends.torch.cache import TorchCache
from datong.backends.torch.frame import Frame
from datong.backends.torch.fused import resolve
from datong.backends.torch.target import Target
from datong.spec.program import Step

Array = NDArray[Any]


def bucket(count: int) -> int:
    """The next power of two."""
    return 1 << max(0, count - 1).bit_length()


def is_decode(step: Step) -> bool:
    """Has every sequence one new token?"""
    return len(step.ids) == len(step.context_lens) > 0 and bool((np.diff(step.query_starts) == 1).all())


def pad_decode(step: Step, cache: TorchCache) -> Step:
    """A decode step with sequences, rows and table width rounded up; padding lives in the cache's scratch block."""
    count = len(step.context_lens)
    more = bucket(count) - count
    windows, slots = step.window_tables, step.state_slots
    return replace(
        step,
        ids=_pad(step.ids, more, 0),
        positions=_pad(step.positions, more, 0),
        query_starts=np.arange(count + more + 1),
        context_lens=_pad(step.context_lens, more, 1),
        block_tables=_pad_tables(step.block_tables, cache.scratch),
        rows=_pad(step.rows, bucket(len(step.rows)) - len(step.rows), 0),
        window_tables=None if windows is None else _pad_tables(windows, cache.window_scratch),
        state_slots=None if slots is None else _pad(slots, more, cache.state_scratch),
    )


def _pad_tables(tables: Array, scratch: int) -> Array:
    count, width = tables.shape
    padded = np.full((bucket(count), bucket(width)), scratch, np.int32)
    padded[:count, :width] = tables
    return padded


def _pad(a: Array, more: int, value: int) -> Array:
    return np.append(a, np.full(more, value, a.dtype)) if more else a


@dataclass
class Captured:
    """A recorded step: replaying it reads the frame's integers and leaves the outputs where they were."""

    frame: Frame
    graph: Any
    outputs: dict[str, Tensor]


def can_capture(target: Target) -> bool:
    """Has the adapter, which is imported, the class that the descriptor names, and its context manager?"""
    return bool(target.graph) and None not in (resolve(target.graph), resolve(f"{target.namespace}.graph"))


def capture(target: Target, frame: Frame, run: Callable[[Frame], dict[str, Tensor]]) -> Captured:
    """Record `run` on a static frame."""
    graph_class: Any = resolve(target.graph)
    context: Any = resolve(f"{target.namespace}.graph")
    graph = graph_class()
    with context(graph):
        outputs = run(frame)
    return Captured(frame, graph, outputs)
