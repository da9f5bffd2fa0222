"""The paged K/V store around a graph whose caches are dense inputs and outputs: gathered before a run, scattered after.

Copying the past of every layer at each step is the price of running the graph as it is.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from datong.dtypes import DType
from datong.errors import DeviceError
from datong.spec.backend import CacheLayout
from datong.spec.program import CacheSpec

Array = NDArray[Any]

BLOCK_SIZE = 16  # tokens; as the reference, so that both form the same blocks


class PagedStore:
    """Keys and values on the host, `[blocks, kv_heads, BLOCK_SIZE, dim]` per layer and half, in the cache's dtype."""

    def __init__(self, specs: tuple[CacheSpec, ...], dtype: DType, blocks: int) -> None:
        if blocks < 0:
            raise DeviceError("onnxruntime", f"a cache should have at least 0 blocks, {blocks} were asked for")
        per_token = sum(s.kv_heads * (s.key_dim + s.value_dim) for s in specs)
        self.layout, self.blocks = CacheLayout(BLOCK_SIZE, dtype.name, dtype.nbytes(per_token * BLOCK_SIZE)), blocks
        self._halves: dict[tuple[int, str], Array] = {}
        try:
            for s in specs:
                for half, dim in (("key", s.key_dim), ("value", s.value_dim)):
                    self._halves[s.layer, half] = np.zeros((blocks, s.kv_heads, BLOCK_SIZE, dim), dtype.numpy)
        except (MemoryError, ValueError) as error:
            size = blocks * self.layout.bytes_per_block
            raise DeviceError("onnxruntime", f"a cache of {blocks} blocks needs {size} bytes, got: {error}") from error

    def copy_block(self, source: int, target: int) -> None:
        """Copy one block in all layers."""
        for name, block in (("source", source), ("target", target)):
            if not 0 <= block < self.blocks:
                raise DeviceError("onnxruntime", f"{name} block should lie in 0..{self.blocks - 1}, is {block}")
        for array in self._halves.values():
            array[target] = array[source]

    def gather(self, layer: int, half: str, tables: Array, past: int) -> Array:
        """The first `past` tokens of B sequences: tables [B, M] i32 -> [B, kv_heads, past, dim] f32.

        Blocks that a window has left (-1) come as zeros: the graph's mask keeps them out, and NaN would not stay out.
        """
        store, used = self._halves[layer, half], tables[:, : -(-past // BLOCK_SIZE)]
        found = store[used].astype(np.float32)  # [B, m, kv_heads, BLOCK_SIZE, dim]
        found[used < 0] = 0
        batch, blocks, heads, size, dim = found.shape
        dense = found.transpose(0, 2, 1, 3, 4).reshape(batch, heads, blocks * size, dim)
        return np.ascontiguousarray(dense[:, :, :past])

    def scatter(self, layer: int, half: str, tables: Array, past: int, new: Array) -> None:
        """Keep the tokens from place `past` on: new [B, kv_heads, S, dim] f32."""
        places = np.arange(past, past + new.shape[2])
        blocks, slots = tables[:, places // BLOCK_SIZE], places % BLOCK_SIZE
        with np.errstate(over="ignore"):  # a value that f16 cannot hold becomes infinite, as on every device
            self._halves[layer, half][blocks, :, slots[None, :]] = new.transpose(0, 2, 1, 3)
