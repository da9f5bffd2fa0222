"""The pool of state slots: what recurrent layers and short convolutions know of a sequence. Plain Python, no tensors.

A running sequence has one slot. Other slots hold snapshots: the state at the end of a node of the tree (blocks.py),
from which a prompt with the same beginning goes on. A slot that is wanted for a sequence, or for a newer snapshot, is
taken from the snapshot that was not used for longest.

What has to be copied on the device is put down in `copies`, in order; the engine does it before the next step.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from datong.errors import OutOfBlocks


class StatePool:
    """Slots `0 … slots - 1`."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.copies: list[tuple[int, int]] = []  # (source, target)
        self._free = list(range(slots - 1, -1, -1))
        self._snapshots: OrderedDict[int, int] = OrderedDict()  # node -> slot, oldest use first

    @property
    def held(self) -> int:
        """Slots that sequences hold."""
        return self.slots - len(self._free) - len(self._snapshots)

    def take(self) -> int:
        """A slot for a sequence that begins; what is in it does not matter. Raises OutOfBlocks."""
        if self._free:
            return self._free.pop()
        if not self._snapshots:
            raise OutOfBlocks("cache", f"one more state slot was wanted, all {self.slots} are held")
        return self._snapshots.popitem(last=False)[1]

    def release(self, slot: int) -> None:
        """Give a sequence's slot back."""
        self._free.append(slot)

    def covers(self, chain: Sequence[int]) -> bool:
        """Can a sequence go on after these nodes?"""
        return not chain or chain[-1] in self._snapshots

    def resume(self, chain: Sequence[int]) -> int:
        """A slot for a sequence that goes on after these nodes, which `covers`."""
        if not chain:
            return self.take()
        source = self._snapshots.pop(chain[-1])
        if not self._free and not self._snapshots:
            return source
        target = self.take()
        self._snapshots[chain[-1]] = source  # used last
        self.copies.append((source, target))
        return target

    def snapshot(self, node: int, slot: int) -> None:
        """Keep a sequence's state, which is that at the end of the node, where a slot can be had."""
        if node in self._snapshots:
            self._snapshots.move_to_end(node)
        elif self._free or self._snapshots:
            target = self.take()
            self._snapshots[node] = target
            self.copies.append((slot, target))

    def drop(self, node: int) -> None:
        """The node is gone."""
        slot = self._snapshots.pop(node, None)
        if slot is not None:
            self._free.append(slot)

    def forget(self) -> None:
        """Drop every snapshot, as after a device error."""
        self.copies.clear()
        self._free.extend(self._snapshots.values())
        self._snapshots.clear()
