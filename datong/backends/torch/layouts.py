"""How keys and values lie in the paged cache: `LAYOUTS`, by the name that descriptors use (`kv_layout`).

    nhd          [blocks, bs, H, D]                          a block is bs rows of tokens; most vendors' attention
    hnd          [blocks, H, bs, D]                          a head's tokens lie together
    metax_paged  key [blocks, H, D/x, bs, x], value [blocks, H, D, bs]; x: 16 bytes, or less to divide D

D head size, H key heads, bs tokens per block, N new tokens, S sequences, M blocks of each.
Source: mcoplib_ops.md (paged_attention_v1) for metax_paged; xllm ilu_ops_api.h for hnd.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from datong.backends.torch.binding import Batch


class Layout(Protocol):
    """One tensor per layer and kind. `in_place`: has it spans?"""

    in_place: bool

    def shape(self, blocks: int, block_size: int, heads: int, dim: int, itemsize: int) -> tuple[int, ...]:
        """Of the tensor that holds `blocks` blocks."""

    def write(self, cache: Tensor, rows: Tensor, batch: Batch) -> None:
        """Put the rows of new tokens, [N, H, D] in the cache's dtype, at the slots of the batch."""

    def gather(self, cache: Tensor, blocks: Tensor) -> Tensor:
        """Whole blocks in the order of blocks [S, M] -> [S, H, M*bs, D]."""

    def span(self, cache: Tensor, start: int, length: int) -> Tensor:
        """Slots start .. start+length of the cache, [1, H, length, D], without a copy; only where `in_place`."""


class Nhd:
    """[blocks, bs, H, D]."""

    in_place = True

    def shape(self, blocks: int, block_size: int, heads: int, dim: int, itemsize: int) -> tuple[int, ...]:
        """See Layout."""
        return blocks, block_size, heads, dim

    def write(self, cache: Tensor, rows: Tensor, batch: Batch) -> None:
        """See Layout."""
        flat = cache.view(-1, cache.shape[2], cache.shape[3])
        if batch.slots.dtype is torch.int64:
            flat.index_copy_(0, batch.slots, rows)
        else:  # index_copy_ takes no i32
            flat[batch.slots] = rows

    def gather(self, cache: Tensor, blocks: Tensor) -> Tensor:
        """See Layout."""
        picked = cache.index_select(0, blocks.reshape(-1))
        return picked.view(blocks.shape[0], -1, cache.shape[2], cache.shape[3]).transpose(1, 2)

    def span(self, cache: Tensor, start: int, length: int) -> Tensor:
        """See Layout."""
        return cache.view(1, -1, cache.shape[2], cache.shape[3]).narrow(1, start, length).transpose(1, 2)


class Hnd:
    """[blocks, H, bs, D]."""

    in_place = False

    def shape(self, blocks: int, block_size: int, heads: int, dim: int, itemsize: int) -> tuple[int, ...]:
        """See Layout."""
        return blocks, heads, block_size, dim

    def write(self, cache: Tensor, rows: Tensor, batch: Batch) -> None:
        """See Layout."""
        cache[batch.slot_blocks, :, batch.slot_offsets] = rows

    def gather(self, cache: Tensor, blocks: Tensor) -> Tensor:
        """See Layout."""
        count, width = blocks.shape
        _, heads, size, dim = cache.shape
        picked = cache.index_select(0, blocks.reshape(-1)).view(count, width, heads, size, dim)
        return picked.transpose(1, 2).reshape(count, heads, width * size, dim)

    def span(self, cache: Tensor, start: int, length: int) -> Tensor:
        """See Layout: blocks of one head do not lie side by side."""
        raise NotImplementedError(f"{type(self).__name__} has no spans")


class KeysByX(Hnd):
    """[blocks, H, D/x, bs, x]: x neighbouring channels, 16 bytes, lie together."""

    def shape(self, blocks: int, block_size: int, heads: int, dim: int, itemsize: int) -> tuple[int, ...]:
        """See Layout."""
        x = math.gcd(dim, 16 // itemsize)
        return blocks, heads, dim // x, block_size, x

    def write(self, cache: Tensor, rows: Tensor, batch: Batch) -> None:
        """See Layout."""
        count, heads, _ = rows.shape
        cache[batch.slot_blocks, :, :, batch.slot_offsets] = rows.reshape(count, heads, -1, cache.shape[-1])

    def gather(self, cache: Tensor, blocks: Tensor) -> Tensor:
        """See Layout."""
        count, width = blocks.shape
        _, heads, outer, size, x = cache.shape
        picked = cache.index_select(0, blocks.reshape(-1)).view(count, width, heads, outer, size, x)
        return picked.permute(0, 2, 1, 4, 3, 5).reshape(count, heads, width * size, outer * x)


class ValuesByChannel(Hnd):
    """[blocks, H, D, bs]."""

    def shape(self, blocks: int, block_size: int, heads: int, dim: int, itemsize: int) -> tuple[int, ...]:
        """See Layout."""
        return blocks, heads, dim, block_size

    def write(self, cache: Tensor, rows: Tensor, batch: Batch) -> None:
        """See Layout."""
        cache[batch.slot_blocks, :, :, batch.slot_offsets] = rows

    def gather(self, cache: Tensor, blocks: Tensor) -> Tensor:
        """See Layout."""
        count, width = blocks.shape
        _, heads, dim, size = cache.shape
        picked = cache.index_select(0, blocks.reshape(-1)).view(count, width, heads, dim, size)
        return picked.permute(0, 2, 1, 4, 3).reshape(count, heads, width * size, dim)


@dataclass(frozen=True)
class Pair:
    """Layouts of keys and of values."""

    keys: Layout
    values: Layout


LAYOUTS: dict[str, Pair] = {
    "nhd": Pair(Nhd(), Nhd()),
    "hnd": Pair(Hnd(), Hnd()),
    "metax_paged": Pair(KeysByX(), ValuesByChannel()),
}
