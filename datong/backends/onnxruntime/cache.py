"""The store around a graph whose caches are dense inputs and outputs: gathered before a run, scattered after.

Copying the past of every layer at each step is the price of running the graph as it is.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from datong.backends.reference.cache import BLOCK_SIZE, ReferenceCache
from datong.dtypes import DType
from datong.spec.caches import KEYS, tables
from datong.spec.program import STATE_KINDS, CacheSpec, Step

Array = NDArray[Any]

__all__ = ["BLOCK_SIZE", "PagedStore", "halves"]


def halves(spec: CacheSpec) -> tuple[str, ...]:
    """What a cache is to the graph: `past_key_values.<layer>.<half>`, for states `past_state.<layer>.<half>`."""
    if spec.kind in STATE_KINDS:
        return (spec.kind,)
    if spec.kind not in KEYS:
        return ("index",)
    return ("key",) if spec.kind == "latent" else ("key", "value")


class PagedStore(ReferenceCache):
    """The reference's arrays on the host, so that both form the same blocks."""

    def __init__(
        self, specs: tuple[CacheSpec, ...], dtype: DType, blocks: int, window_blocks: int = 0, states: int = 0
    ) -> None:
        super().__init__(specs, dtype, blocks, window_blocks, states, "onnxruntime")

    def past(self, spec: CacheSpec, half: str, step: Step, members: Array, past: int) -> Array:
        """What sequences `members` [B], of `past` tokens each, hand to the graph, f32.

        Per token [B, kv_heads, past, dim]; a state [B, kv_heads, key_dim, value_dim], zero where nothing is past.
        """
        if spec.kind in STATE_KINDS:
            found: Array = self.states[spec.layer, spec.kind][_slots(step)[members]]
            return found if past else np.zeros_like(found)
        return gather(self._half(spec, half), tables(step, spec)[members], past)

    def keep(self, spec: CacheSpec, half: str, step: Step, members: Array, past: int, present: Array) -> None:
        """Store what the graph gave back: per token [B, kv_heads, past + new, dim], or the states."""
        if spec.kind in STATE_KINDS:
            self.states[spec.layer, spec.kind][_slots(step)[members]] = present
        else:
            scatter(self._half(spec, half), tables(step, spec)[members], past, present[:, :, past:])

    def _half(self, spec: CacheSpec, half: str) -> Array:
        return {"key": self.keys, "value": self.values, "index": self.index}[half][spec.layer]


def _slots(step: Step) -> Array:
    return step.state_slots if step.state_slots is not None else np.zeros(len(step.context_lens), np.int32)


def gather(store: Array, tables: Array, past: int) -> Array:
    """The first `past` tokens of B sequences: tables [B, M] i32 -> [B, kv_heads, past, dim] f32.

    Blocks that a window has left (-1) come as zeros: the graph's mask keeps them out, and NaN would not stay out.
    """
    used = tables[:, : -(-past // BLOCK_SIZE)]
    found = store[used].astype(np.float32)  # [B, m, kv_heads, BLOCK_SIZE, dim]
    found[used < 0] = 0
    batch, blocks, heads, size, dim = found.shape
    dense = found.transpose(0, 2, 1, 3, 4).reshape(batch, heads, blocks * size, dim)
    return np.ascontiguousarray(dense[:, :, :past])


def scatter(store: Array, tables: Array, past: int, new: Array) -> None:
    """Keep the tokens from place `past` on: new [B, kv_heads, S, dim] f32."""
    places = np.arange(past, past + new.shape[2])
    blocks, slots = tables[:, places // BLOCK_SIZE], places % BLOCK_SIZE
    with np.errstate(over="ignore"):  # a value that f16 cannot hold becomes infinite, as on every device
        store[blocks, :, slots[None, :]] = new.transpose(0, 2, 1, 3)
