"""The caches on the device: paged ones in the target's layout, states in f32, one slot per sequence.

There is one block (and one slot) more than was asked for: `scratch`, which padding writes to and unused table entries
point at.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from datong import dtypes
from datong.backends.torch.dtypes import DTYPES
from datong.backends.torch.layouts import LAYOUTS, Layout, Nhd, Pair
from datong.backends.torch.target import Target
from datong.errors import DeviceError
from datong.spec.backend import CacheLayout
from datong.spec.caches import KEYS, cache_bytes, check_copy, check_counts, layout, limits
from datong.spec.program import STATE_KINDS, CacheSpec

INDEX = Nhd()  # how index keys lie: no vendor's operator reads them


def layout_of(specs: tuple[CacheSpec, ...], target: Target, dtype: str) -> CacheLayout:
    """Bytes of one block, and of one state, over all layers."""
    return layout(specs, dtypes.BY_NAME[dtype], target.block_size)


def pair_of(target: Target) -> Pair:
    """The target's layouts. Raises DeviceError for a name that layouts.py does not have."""
    if target.layout not in LAYOUTS:
        text = f"the cache's layout should be one of {', '.join(LAYOUTS)}, the descriptor says `{target.layout}`"
        raise DeviceError(target.name, text)
    return LAYOUTS[target.layout]


class TorchCache:
    """What every layer keeps.

    keys[layer]          in the target's layout of keys; of kinds full, window, latent
    values[layer]        in that of values; of kinds full and window
    index[layer]         index keys, `[blocks, block_size, heads, dim]`
    states[layer, kind]  [slots, kv_heads, key_dim, value_dim] f32, of kinds recurrent and conv
    """

    def __init__(
        self,
        specs: tuple[CacheSpec, ...],
        target: Target,
        device: torch.device,
        dtype: str,
        blocks: int,
        window_blocks: int = 0,
        states: int = 0,
    ) -> None:
        check_counts(target.name, blocks, window_blocks, states)
        self.layout, self._name, self._slots = layout_of(specs, target, dtype), target.name, states
        self.limits = limits(specs, target.block_size, blocks, window_blocks, states)
        self.blocks, self.scratch = blocks, blocks
        self.window_scratch, self.state_scratch = window_blocks or blocks, states
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}
        self.index: dict[int, Tensor] = {}
        self.states: dict[tuple[int, str], Tensor] = {}
        self.captured: dict[Any, Any] = {}  # steps that graphs.py captured: they hold the addresses of these tensors
        try:
            for spec in specs:
                self._add(spec, target, device, DTYPES[dtype])
        except RuntimeError as error:
            text = (
                f"a cache of {blocks} blocks needs {cache_bytes(self.layout, blocks + 1, window_blocks, states)} bytes"
            )
            raise DeviceError(target.name, f"{text}, got: {str(error).splitlines()[0]}", "a smaller context") from error
        apart = {s.layer for s in specs if s.kind == "window"} if window_blocks else set()
        self._shared = [t for half in (self.keys, self.values) for layer, t in half.items() if layer not in apart]
        self._shared += self.index.values()

    def _add(self, s: CacheSpec, target: Target, device: torch.device, dtype: torch.dtype) -> None:
        if s.kind in STATE_KINDS:
            shape: tuple[int, ...] = (self.state_scratch + 1, s.kv_heads, s.key_dim, s.value_dim)
            self.states[s.layer, s.kind] = torch.zeros(shape, dtype=torch.float32, device=device)
            return
        blocks = (self.window_scratch if s.kind == "window" else self.blocks) + 1
        pair = pair_of(target)
        halves: list[tuple[dict[int, Tensor], Layout, int]] = []
        halves.append((self.keys, pair.keys, s.key_dim) if s.kind in KEYS else (self.index, INDEX, s.key_dim))
        if s.kind in ("full", "window"):
            halves.append((self.values, pair.values, s.value_dim))
        for into, form, dim in halves:
            shape = form.shape(blocks, target.block_size, s.kv_heads, dim, dtype.itemsize)
            into[s.layer] = torch.zeros(shape, dtype=dtype, device=device)

    def copy_block(self, source: int, target: int) -> None:
        """Copy one block in all layers, but for windows that have blocks of their own."""
        check_copy(self._name, "block", source, target, self.blocks)
        with torch.inference_mode():
            for tensor in self._shared:
                tensor[target].copy_(tensor[source])

    def copy_state(self, source: int, target: int) -> None:
        """Copy one state slot in all layers."""
        check_copy(self._name, "state", source, target, self._slots)
        with torch.inference_mode():
            for tensor in self.states.values():
                tensor[target].copy_(tensor[source])
