"""The paged K/V cache of the reference backend: plain arrays `[blocks, kv_heads, block_size, dim]` per layer."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from datong.dtypes import DType
from datong.errors import DeviceError
from datong.spec.backend import CacheLayout
from datong.spec.program import CacheSpec

BLOCK_SIZE = 16  # tokens; small, so that tests of tiny models cross block borders


def layout_of(specs: tuple[CacheSpec, ...], dtype: DType) -> CacheLayout:
    """Bytes of one block over all layers, keys and values."""
    per_token = sum(s.kv_heads * (s.key_dim + s.value_dim) for s in specs)
    return CacheLayout(BLOCK_SIZE, dtype.name, dtype.nbytes(per_token * BLOCK_SIZE))


class ReferenceCache:
    """Keys and values by layer; `keys[layer]` is [blocks, kv_heads, BLOCK_SIZE, key_dim]."""

    def __init__(self, specs: tuple[CacheSpec, ...], dtype: DType, blocks: int) -> None:
        if blocks < 0:
            raise DeviceError("reference", f"a cache should have at least 0 blocks, {blocks} were asked for")
        self.layout, self.blocks = layout_of(specs, dtype), blocks
        self.keys: dict[int, NDArray[Any]] = {}
        self.values: dict[int, NDArray[Any]] = {}
        try:
            for s in specs:
                self.keys[s.layer] = np.zeros((blocks, s.kv_heads, BLOCK_SIZE, s.key_dim), dtype.numpy)
                self.values[s.layer] = np.zeros((blocks, s.kv_heads, BLOCK_SIZE, s.value_dim), dtype.numpy)
        except (MemoryError, ValueError) as error:
            size = blocks * self.layout.bytes_per_block
            raise DeviceError("reference", f"a cache of {blocks} blocks needs {size} bytes, got: {error}") from error

    def copy_block(self, source: int, target: int) -> None:
        """Copy one block in all layers."""
        for name, block in (("source", source), ("target", target)):
            if not 0 <= block < self.blocks:
                raise DeviceError("reference", f"{name} block should lie in 0..{self.blocks - 1}, is {block}")
        for arrays in (self.keys, self.values):
            for array in arrays.values():
                array[target] = array[source]
