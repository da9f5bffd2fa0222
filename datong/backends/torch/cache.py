"""The paged cache on the device: one tensor of keys and one of values per layer, in the target's layout.

There is one block more than was asked for: `scratch`, which padding writes to and unused table entries point at.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from datong import dtypes
from datong.backends.torch.dtypes import DTYPES
from datong.backends.torch.layouts import LAYOUTS, Pair
from datong.backends.torch.target import Target
from datong.errors import DeviceError
from datong.spec.backend import CacheLayout
from datong.spec.program import CacheSpec


def layout_of(specs: tuple[CacheSpec, ...], target: Target, dtype: str) -> CacheLayout:
    """Bytes of one block over all layers, keys and values."""
    per_token = sum(s.kv_heads * (s.key_dim + s.value_dim) for s in specs)
    return CacheLayout(target.block_size, dtype, dtypes.BY_NAME[dtype].nbytes(per_token * target.block_size))


def pair_of(target: Target) -> Pair:
    """The target's layouts. Raises DeviceError for a name that layouts.py does not have."""
    if target.layout not in LAYOUTS:
        text = f"the cache's layout should be one of {', '.join(LAYOUTS)}, the descriptor says `{target.layout}`"
        raise DeviceError(target.name, text)
    return LAYOUTS[target.layout]


class TorchCache:
    """Keys and values by layer."""

    def __init__(
        self, specs: tuple[CacheSpec, ...], target: Target, device: torch.device, dtype: str, blocks: int
    ) -> None:
        if blocks < 0:
            raise DeviceError(target.name, f"a cache should have at least 0 blocks, {blocks} were asked for")
        self.layout, self.blocks, self.scratch = layout_of(specs, target, dtype), blocks, blocks
        self._name = target.name
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}
        self.captured: dict[Any, Any] = {}  # steps that graphs.py captured: they hold the addresses of these tensors
        pair, element, size = pair_of(target), DTYPES[dtype], target.block_size
        try:
            for s in specs:
                for into, layout, dim in ((self.keys, pair.keys, s.key_dim), (self.values, pair.values, s.value_dim)):
                    shape = layout.shape(blocks + 1, size, s.kv_heads, dim, element.itemsize)
                    into[s.layer] = torch.zeros(shape, dtype=element, device=device)
        except RuntimeError as error:
            text = f"a cache of {blocks} blocks needs {(blocks + 1) * self.layout.bytes_per_block} bytes"
            raise DeviceError(target.name, f"{text}, got: {str(error).splitlines()[0]}", "a smaller context") from error

    def copy_block(self, source: int, target: int) -> None:
        """Copy one block in all layers."""
        for name, block in (("source", source), ("target", target)):
            if not 0 <= block < self.blocks:
                raise DeviceError(self._name, f"{name} block should lie in 0..{self.blocks - 1}, is {block}")
        with torch.inference_mode():
            for tensor in (*self.keys.values(), *self.values.values()):
                tensor[target].copy_(tensor[source])
