"""The caches of the reference backend, plain arrays: blocks `[blocks, kv_heads, block_size, dim]`, and state slots."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datong.dtypes import DType
from datong.errors import DeviceError
from datong.spec.backend import CacheLayout
from datong.spec.caches import KEYS, cache_bytes, check_copy, check_counts, layout, limits, tables
from datong.spec.program import STATE_KINDS, CacheSpec, Step

Array = NDArray[Any]

BLOCK_SIZE = 16  # tokens; small, so that tests of tiny models cross block borders


def layout_of(specs: tuple[CacheSpec, ...], dtype: DType) -> CacheLayout:
    """Bytes of one block, and of one state, over all layers."""
    return layout(specs, dtype, BLOCK_SIZE)


class ReferenceCache:
    """What every layer keeps; B is the number of blocks, or of window blocks where those are apart.

    keys[layer]          [B, kv_heads, BLOCK_SIZE, key_dim] of kinds full, window, latent
    values[layer]        [B, kv_heads, BLOCK_SIZE, value_dim] of kinds full, window
    index[layer]         [B, kv_heads, BLOCK_SIZE, key_dim]
    states[layer, kind]  [states, kv_heads, key_dim, value_dim] f32 of kinds recurrent and conv

    `where` is the backend's name, for errors.
    """

    def __init__(
        self,
        specs: tuple[CacheSpec, ...],
        dtype: DType,
        blocks: int,
        window_blocks: int = 0,
        states: int = 0,
        where: str = "reference",
    ) -> None:
        check_counts(where, blocks, window_blocks, states)
        self.layout, self._where = layout_of(specs, dtype), where
        self.blocks, self.window_blocks, self.slots = blocks, window_blocks, states
        self.limits = limits(specs, BLOCK_SIZE, blocks, window_blocks, states)
        self.keys: dict[int, Array] = {}
        self.values: dict[int, Array] = {}
        self.index: dict[int, Array] = {}
        self.states: dict[tuple[int, str], Array] = {}
        try:
            for spec in specs:
                self._add(spec, dtype.numpy)
        except (MemoryError, ValueError) as error:
            size = cache_bytes(self.layout, blocks, window_blocks, states)
            raise DeviceError(where, f"a cache of {blocks} blocks needs {size} bytes, got: {error}") from error
        apart = {s.layer for s in specs if s.kind == "window"} if window_blocks else set()
        self._shared = [a for half in (self.keys, self.values) for layer, a in half.items() if layer not in apart]
        self._shared += self.index.values()

    def _add(self, s: CacheSpec, dtype: np.dtype[Any]) -> None:
        if s.kind in STATE_KINDS:
            self.states[s.layer, s.kind] = np.zeros((self.slots, s.kv_heads, s.key_dim, s.value_dim), np.float32)
            return
        blocks = self.window_blocks if s.kind == "window" and self.window_blocks else self.blocks
        made = np.zeros((blocks, s.kv_heads, BLOCK_SIZE, s.key_dim), dtype)
        if s.kind not in KEYS:
            self.index[s.layer] = made
            return
        self.keys[s.layer] = made
        if s.kind != "latent":
            self.values[s.layer] = np.zeros((*made.shape[:3], s.value_dim), dtype)

    def operands(self, spec: CacheSpec, step: Step) -> dict[str, Any]:
        """What the definition of a node takes beside its inputs, for one of its caches."""
        if spec.kind in STATE_KINDS:
            return {"step": step, "state": self.states[spec.layer, spec.kind]}
        found = tables(step, spec)
        own = step if found is step.block_tables else replace(step, block_tables=found)
        if spec.kind not in KEYS:
            return {"step": own, "index_cache": self.index[spec.layer]}
        if spec.kind == "latent":
            return {"step": own, "key_cache": self.keys[spec.layer]}
        return {"step": own, "key_cache": self.keys[spec.layer], "value_cache": self.values[spec.layer]}

    def copy_block(self, source: int, target: int) -> None:
        """Copy one block in all layers, but for windows that have blocks of their own."""
        check_copy(self._where, "block", source, target, self.blocks)
        for array in self._shared:
            array[target] = array[source]

    def copy_state(self, source: int, target: int) -> None:
        """Copy one state slot in all layers."""
        check_copy(self._where, "state", source, target, self.slots)
        for array in self.states.values():
            array[target] = array[source]
