"""The pool of cache blocks: who holds which block, and which full blocks can be used again. Plain Python, no tensors.

A block holds the K/V of `block_size` consecutive tokens of one sequence, in all layers. It is in one of three states:

    free    holds nothing; taken first, lowest number first, so that memory never used is never touched
    held    by one or more sequences; shared blocks are full and never written again
    idle    held by nobody, but full and published: its tokens are known, a later prompt with the same
            beginning takes it over (`match`). Taken for new tokens when no free block is left, oldest first

Published blocks form a tree: a node is known by its parent's number and its own tokens, so equal keys mean equal
tokens from the first on, without trusting a hash.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence

from datong.errors import OutOfBlocks

ROOT = 0  # the parent of a sequence's first block

Key = tuple[int, tuple[int, ...]]  # (node of the parent block, tokens of this block)


class BlockPool:
    """Blocks `0 … blocks - 1` of `block_size` tokens.

    reuse: False publishes nothing.
    dropped: told of every node that is forgotten.
    """

    def __init__(self, blocks: int, block_size: int, *, reuse: bool = True) -> None:
        self.blocks, self.block_size, self.reuse = blocks, block_size, reuse
        self._free = list(range(blocks - 1, -1, -1))
        self._refs = [0] * blocks
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._nodes: dict[Key, tuple[int, int]] = {}  # key -> (node, block)
        self._key_of: dict[int, Key] = {}
        self._next_node = ROOT + 1
        self.dropped: list[Callable[[int], None]] = []

    @property
    def available(self) -> int:
        """Blocks that `take` can give now."""
        return len(self._free) + len(self._idle)

    @property
    def held(self) -> int:
        """Blocks that sequences hold."""
        return self.blocks - self.available

    def needed(self, tokens: int) -> int:
        """Blocks that `tokens` tokens fill."""
        return -(-tokens // self.block_size)

    def take(self) -> int:
        """Give out one block, held once. Raises OutOfBlocks."""
        if self._free:
            block = self._free.pop()
        elif self._idle:
            block, _ = self._idle.popitem(last=False)
            self._forget(block)
        else:
            raise OutOfBlocks(
                "cache",
                f"one more block was wanted, all {self.blocks} of {self.block_size} tokens are held",
                "load the model with a larger `cache_tokens`, or run fewer sequences at once",
            )
        self._refs[block] = 1
        return block

    def release(self, blocks: Iterable[int]) -> None:
        """Give up one hold on each block of a sequence; pass them first to last, the last is forgotten first."""
        for block in reversed(list(blocks)):
            self._refs[block] -= 1
            if self._refs[block]:
                continue
            if block in self._key_of:
                self._idle[block] = None
            else:
                self._free.append(block)

    def match(self, tokens: Sequence[int], limit: int) -> tuple[list[int], list[int]]:
        """Hold the published blocks that cover the beginning of `tokens`, at most `limit` tokens of it.

        Returns the blocks and their nodes, first to last.
        """
        blocks: list[int] = []
        chain: list[int] = []
        parent, size = ROOT, self.block_size
        for start in range(0, limit // size * size, size):
            found = self._nodes.get((parent, tuple(tokens[start : start + size])))
            if found is None:
                break
            parent, block = found
            self._idle.pop(block, None)
            self._refs[block] += 1
            blocks.append(block)
            chain.append(parent)
        return blocks, chain

    def publish(self, parent: int, tokens: Sequence[int], block: int) -> int:
        """Make a full block known under its parent node and tokens. Returns its node, for the next block."""
        if not self.reuse:
            return ROOT
        key = (parent, tuple(tokens))
        known = self._nodes.get(key)
        if known is not None:  # another sequence came first; ours stays private
            return known[0]
        node, self._next_node = self._next_node, self._next_node + 1
        self._nodes[key] = (node, block)
        self._key_of[block] = key
        return node

    def forget(self) -> None:
        """Drop every idle block's content, as after a device error."""
        for block in self._idle:
            self._forget(block)
        self._free.extend(self._idle)
        self._idle.clear()

    def _forget(self, block: int) -> None:
        node, _ = self._nodes.pop(self._key_of.pop(block))
        for told in self.dropped:
            told(node)
