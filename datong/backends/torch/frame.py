"""One step as the lowered operators see it: registers, and the step's metadata on the device.

All integers of a step cross to the device at once, in two tensors (one where indices are i32 too); everything here is a
view of those. What the host knows anyway, lengths above all, stays on the host, so that no operator asks the device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datong.backends.torch.binding import Batch
from datong.backends.torch.cache import TorchCache
from datong.spec.program import STATE_KINDS, CacheSpec, Step

Array = NDArray[Any]


@dataclass
class Reach:
    """The keys that one sequence's new tokens may see: `length` of them, the oldest at place `first`.

    They are the cache's slots `start` .. if its blocks lie in a row, else those of `table` after skipping some.
    """

    row: int  # its first new token, within the step
    new: int
    first: int
    length: int
    start: int = -1
    skip: int = 0
    table: Tensor | None = None  # [1, M] i32
    mask: Tensor | None = None  # [new, length], added to scores; made by the first layer that needs it

    @property
    def fresh(self) -> bool:
        """Is every key a new token's?"""
        return self.length == self.new


@dataclass
class Frame:
    """Everything of one step."""

    registers: list[Any]  # Tensor by register; made by the builder
    cache: TorchCache | None
    tokens: int  # rows of activations, padding included
    ids: Tensor
    positions: Tensor
    rows: Tensor
    whole: Batch | None  # every token; None: the part has no attention
    decode: Batch | None  # sequences with one new token
    prefill: Batch | None  # those with more
    decode_rows: Tensor | None  # [N] of the step's rows; None: all of them, in order
    prefill_rows: Tensor | None
    reaches: dict[int, list[Reach]] = field(default_factory=dict)  # by window; of all sequences that are not batched
    masks: dict[int, Tensor] = field(default_factory=dict)  # by window, [S, 1, 1, M*bs], of the batched ones
    windowed: Frame | None = None  # the same step through `window_tables`; None: windows lie in `block_tables`
    slots: Tensor | None = None  # [S] of the states; None: the part has none
    began: Tensor | None = None  # [S] i32, 1: the sequence has a state; 0: it begins, its state is zero
    buffers: dict[bool, Tensor] = field(default_factory=dict)  # what all of these are views of

    def of(self, kind: str) -> Frame:
        """The frame with the batches, reaches and masks of one kind of cache."""
        return self.windowed if kind == "window" and self.windowed is not None else self

    def forget(self) -> None:
        """Before a capture: what the layers made of this step and kept (masks, sums of lengths) has to be made again.

        It would be read by the replays and not be recorded. Keepers know a batch by its identity.
        """
        self.masks.clear()
        batches = (self.whole, self.decode, self.prefill)
        fresh = {id(batch): replace(batch) for batch in batches if batch is not None}
        self.whole, self.decode, self.prefill = [fresh.get(id(batch)) for batch in batches]
        if self.windowed is not None:
            self.windowed.forget()


class Packer:
    """Collects arrays, uploads them together, and hands out the views."""

    def __init__(self, device: torch.device, index_dtype: torch.dtype) -> None:
        self._device, self._index_dtype = device, index_dtype
        self._arrays: dict[bool, list[Array]] = {True: [], False: []}
        self._shapes: dict[bool, list[tuple[int, ...]]] = {True: [], False: []}
        self.buffers: dict[bool, Tensor] = {}

    def add(self, array: Array, *, index: bool) -> tuple[bool, int]:
        """Remember an array; index: in the index dtype, else i32."""
        kind = index and self._index_dtype is torch.int64
        self._arrays[kind].append(array.reshape(-1))
        self._shapes[kind].append(array.shape)
        return kind, len(self._arrays[kind]) - 1

    def host(self) -> dict[bool, Tensor]:
        """One tensor per kind, on the host."""
        dtypes = {True: np.int64, False: np.int32}
        return {k: torch.from_numpy(np.concatenate(a, dtype=dtypes[k])) for k, a in self._arrays.items() if a}

    def upload(self) -> dict[tuple[bool, int], Tensor]:
        """Copy to the device; the views by what `add` returned."""
        self.buffers = {kind: tensor.to(self._device) for kind, tensor in self.host().items()}
        views = {}
        for kind, buffer in self.buffers.items():
            parts = torch.split(buffer, [int(np.prod(shape)) for shape in self._shapes[kind]])
            for i, (part, shape) in enumerate(zip(parts, self._shapes[kind], strict=True)):
                views[kind, i] = part if len(shape) == 1 else part.view(shape)
        return views


@dataclass(frozen=True)
class Places:
    """How a frame is made: facts of the executable that do not change."""

    device: torch.device
    index_dtype: torch.dtype
    block_size: int
    caches: tuple[CacheSpec, ...]
    loop_decode: bool  # sequences one by one, without copying their keys


def build(
    step: Step,
    cache: TorchCache | None,
    places: Places,
    *,
    tokens: int = 0,
    static: bool = False,
    replayed: bool = False,
) -> Frame:
    """The frame of a step. tokens: rows of activations, more than the step has where it is padded; 0: as it has.

    static: every sequence has one new token, and no length of the host is used in a shape.
    replayed: and none is used as a truth: contexts are as long as the block tables allow.
    """
    draft = _Draft(step, cache, places, max(tokens, len(step.ids)))
    draft.choose(static)
    return draft.frame(static, replayed)


def refill(frame: Frame, step: Step, places: Places) -> None:
    """Put another step of the same shape into a static frame."""
    draft = _Draft(step, frame.cache, places, len(step.ids))
    draft.choose(static=True)
    for kind, host in draft.packer.host().items():
        frame.buffers[kind].copy_(host)


Handle = tuple[bool, int]


@dataclass
class _View:
    """A frame's part that depends on the block tables; arrays are handles of the packer."""

    tables: Array  # [S, M] i32
    scratch: int
    windows: tuple[int, ...]  # of the caches that are read through it
    groups: dict[str, tuple[tuple[int, int, tuple[int, ...], tuple[int, ...]], list[Handle]]] = field(
        default_factory=dict
    )
    reaches: dict[int, list[tuple[Reach, Handle | None]]] = field(default_factory=dict)


def _views(step: Step, cache: TorchCache | None, caches: tuple[CacheSpec, ...]) -> list[_View]:
    """That of `block_tables`, and that of `window_tables` where windows have blocks of their own."""
    if cache is None:
        return []
    apart = step.window_tables is not None
    paged = [spec for spec in caches if spec.kind not in STATE_KINDS]
    own = tuple(dict.fromkeys(s.window for s in paged if s.kind == "window" and apart))
    shared = tuple(dict.fromkeys(s.window for s in paged if s.kind != "window" or not apart))
    views = [_View(step.block_tables, cache.scratch, shared)]
    if step.window_tables is not None and own:
        views.append(_View(step.window_tables, cache.window_scratch, own))
    return views


class _Draft:
    """A frame before its integers are uploaded."""

    def __init__(self, step: Step, cache: TorchCache | None, places: Places, tokens: int) -> None:
        self.step, self.cache, self.places, self.tokens = step, cache, places, tokens
        self.packer = Packer(places.device, places.index_dtype)
        self.new = step.query_starts[1:] - step.query_starts[:-1]
        pad = tokens - len(step.ids)
        ids, positions = (np.append(a, np.zeros(pad, np.int64)) if pad else a for a in (step.ids, step.positions))
        self.own = [self.packer.add(a, index=True) for a in (ids, positions, step.rows)]
        self.views = _views(step, cache, places.caches)
        self.rows: dict[str, Handle] = {}
        self.states: list[Handle] = []
        if cache is not None and cache.states and step.state_slots is not None:
            began = (step.context_lens > self.new).astype(np.int32)
            self.states = [self.packer.add(step.state_slots, index=True), self.packer.add(began, index=False)]

    def choose(self, static: bool) -> None:
        """Sort the sequences into those that decode and those that do more; for attention, so only with a cache."""
        if not self.views:
            return
        kinds = {"decode": np.flatnonzero(self.new == 1), "prefill": np.flatnonzero(self.new > 1)}
        used = [name for name, chosen in kinds.items() if len(chosen)]
        alone = len(used) == 1 and len(kinds[used[0]]) == len(self.new) and self.tokens == len(self.step.ids)
        one_by_one = np.flatnonzero(self.new) if self.places.loop_decode else kinds["prefill"]
        for view in self.views:
            self._group(view, "whole", None)
            for name in used:
                if alone:
                    view.groups[name] = view.groups["whole"]
                else:
                    self._group(view, name, kinds[name])
            if not static:
                for window in view.windows:
                    view.reaches[window] = [self._reach(view, int(s), window) for s in one_by_one]
        if not alone:
            starts = self.step.query_starts
            for name in used:
                rows = np.concatenate([np.arange(starts[s], starts[s + 1]) for s in kinds[name]])
                self.rows[name] = self.packer.add(rows, index=True)

    def frame(self, static: bool, replayed: bool) -> Frame:
        """Upload, and put the views in."""
        uploaded = self.packer.upload()
        frame = self._frame(self.views[0] if self.views else None, uploaded, static, replayed)
        if len(self.views) > 1:
            frame.windowed = self._frame(self.views[1], uploaded, static, replayed)
        if self.states:
            frame.slots, frame.began = (uploaded[handle] for handle in self.states)
        return frame

    def _frame(self, view: _View | None, uploaded: Mapping[Handle, Tensor], static: bool, replayed: bool) -> Frame:
        batches: dict[str, Batch] = {}
        for name, group in view.groups.items() if view else ():
            if name != "whole" and view is not None and group is view.groups["whole"]:
                batches[name] = batches["whole"]  # the same object: attention asks
                continue
            numbers, handles = group
            starts, lens, tables, slots, blocks, offsets = (uploaded[handle] for handle in handles)
            sequences, tokens, new, contexts = numbers
            if replayed:  # it may have any length that the block tables hold
                contexts = (tables.shape[1] * self.places.block_size,) * sequences
            batches[name] = Batch(
                sequences, tokens, new, contexts, starts, lens, tables, slots, blocks, offsets, static
            )
        ids, positions, rows = (uploaded[h] for h in self.own)
        rows_of = {name: uploaded[handle] for name, handle in self.rows.items()}
        reaches = {
            window: [reach if h is None else replace(reach, table=uploaded[h]) for reach, h in items]
            for window, items in (view.reaches.items() if view else ())
        }
        return Frame(
            [],
            self.cache,
            self.tokens,
            ids,
            positions,
            rows,
            batches.get("whole"),
            batches.get("decode"),
            batches.get("prefill"),
            rows_of.get("decode"),
            rows_of.get("prefill"),
            reaches,
            buffers=self.packer.buffers,
        )

    def _group(self, view: _View, name: str, chosen: Array | None) -> None:
        """The batch of some sequences, or of all and the padding."""
        step, size = self.step, self.places.block_size
        new, lens, tables = self.new, step.context_lens, view.tables
        if chosen is not None:
            new, lens, tables = new[chosen], lens[chosen], tables[chosen]
        if len(new) and new.min() == new.max() == 1:
            owner, place = np.arange(len(new)), lens - 1
        else:
            owner = np.repeat(np.arange(len(new)), new)
            starts = np.cumsum(new) - new
            place = np.arange(len(owner)) - starts[owner] + (lens - new)[owner]
        blocks, offsets = tables[owner, place // size].astype(np.int64), place % size
        if chosen is None and (pad := self.tokens - len(owner)):
            blocks = np.append(blocks, np.full(pad, view.scratch))
            offsets = np.append(offsets, np.zeros(pad, np.int64))
        numbers = (len(new), len(blocks), tuple(new.tolist()), tuple(lens.tolist()))
        arrays = (  # in the order of Batch
            (np.append(0, np.cumsum(new)), False),
            (lens, False),
            (np.where(tables < 0, view.scratch, tables), False),
            (blocks * size + offsets, True),
            (blocks, True),
            (offsets, True),
        )
        view.groups[name] = numbers, [self.packer.add(a, index=index) for a, index in arrays]

    def _reach(self, view: _View, s: int, window: int) -> tuple[Reach, Handle | None]:
        """The keys that sequence `s` sees through a window, and its block table unless its blocks lie in a row."""
        size, new, end = self.places.block_size, int(self.new[s]), int(self.step.context_lens[s])
        first = max(0, end - new - window + 1) if window else 0
        table = view.tables[s, first // size : -(-end // size)]
        reach = Reach(int(self.step.query_starts[s]), new, first, end - first)
        if self.places.loop_decode and (len(table) == 1 or bool((table[1:] - table[:-1] == 1).all())):
            reach.start = int(table[0]) * size + first % size
            return reach, None
        reach.skip = first % size
        return reach, self.packer.add(table[None], index=False)
