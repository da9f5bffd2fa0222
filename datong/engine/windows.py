"""The pool of window blocks: what layers see that look back over `window` tokens only. Plain Python, no tensors.

A sequence holds the blocks from the oldest token that its next one sees; older ones are given back while it runs, so
that it never holds more than the window and the tokens of one step. A block that is given back stays known by its node
of the tree (blocks.py) until it is wanted for new tokens, oldest first: a prompt that goes on from there finds it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

from datong.errors import OutOfBlocks


def enough(sequences: int, window: int, step_tokens: int, block_size: int) -> int:
    """Blocks that `sequences` sequences can hold at once, their steps having `step_tokens` new tokens in all."""
    ends = 3  # a sequence's oldest and newest block, and that of the next token
    return sequences * (-(-window // block_size) + ends) + -(-step_tokens // block_size)


class WindowPool:
    """Blocks `0 … blocks - 1` of `block_size` tokens, for layers that see at most `window` tokens."""

    def __init__(self, blocks: int, block_size: int, window: int) -> None:
        self.blocks, self.block_size, self.window = blocks, block_size, window
        self._free = list(range(blocks - 1, -1, -1))
        self._refs = [0] * blocks
        self._idle: OrderedDict[int, None] = OrderedDict()  # held by nobody, known by a node
        self._block_of: dict[int, int] = {}  # node -> block
        self._node_of: dict[int, int] = {}

    @property
    def held(self) -> int:
        """Blocks that sequences hold."""
        return self.blocks - len(self._free) - len(self._idle)

    def first(self, tokens: int) -> int:
        """Number of the oldest block that a token after `tokens` others sees."""
        return max(0, tokens - self.window + 1) // self.block_size

    def take(self) -> int:
        """Give out one block, held once. Raises OutOfBlocks."""
        if self._free:
            block = self._free.pop()
        elif self._idle:
            block, _ = self._idle.popitem(last=False)
            del self._block_of[self._node_of.pop(block)]
        else:
            raise OutOfBlocks("cache", f"one more window block was wanted, all {self.blocks} are held")
        self._refs[block] = 1
        return block

    def release(self, blocks: Iterable[int]) -> None:
        """Give up one hold on each block."""
        for block in blocks:
            self._refs[block] -= 1
            if self._refs[block]:
                continue
            if block in self._node_of:
                self._idle[block] = None
            else:
                self._free.append(block)

    def covers(self, chain: Sequence[int]) -> bool:
        """Can a sequence go on after these nodes: are all blocks there that its next token sees?"""
        return all(node in self._block_of for node in chain[self.first(len(chain) * self.block_size) :])

    def hold(self, chain: Sequence[int]) -> tuple[int, list[int]]:
        """Hold the blocks that `covers` asked for: the number of the first, and the blocks."""
        first = self.first(len(chain) * self.block_size)
        blocks = [self._block_of[node] for node in chain[first:]]
        for block in blocks:
            self._idle.pop(block, None)
            self._refs[block] += 1
        return first, blocks

    def publish(self, node: int, block: int) -> None:
        """Make a full block known under its node; another one that is known already stays."""
        if node not in self._block_of and block not in self._node_of:
            self._block_of[node], self._node_of[block] = block, node

    def drop(self, node: int) -> None:
        """The node is gone."""
        block = self._block_of.pop(node, None)
        if block is not None:
            del self._node_of[block]
            if block in self._idle:
                del self._idle[block]
                self._free.append(block)

    def forget(self) -> None:
        """Drop every idle block's content, as after a device error."""
        for node in [self._node_of[block] for block in self._idle]:
            self.drop(node)
