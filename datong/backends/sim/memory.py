"""The memory of a simulated device: every allocation is counted, exactly, and freed with its last tensor.

Real allocators round up (to 512 bytes and more) and fragment; here a byte is a byte, so that a limit can be tested.
A captured graph has a pool of its own: it keeps the most that was live at once within the capture, until it is freed.
"""

from __future__ import annotations

from dataclasses import dataclass

from datong.backends.sim.rules import Rules


class Pool:
    """Memory of one captured graph; `peak` bytes are taken from the device for it."""

    def __init__(self) -> None:
        self.live = 0
        self.peak = 0
        self.freed = False


@dataclass
class Meter:
    """Bytes in use on the device. `total` 0: the descriptor does not know the size, and nothing is too much."""

    rules: Rules
    total: int
    used: int = 0
    peak: int = 0
    pool: Pool | None = None  # of the capture that is running

    def check(self, operator: str, size: int) -> None:
        """Raise RuleBroken if `size` more bytes do not fit."""
        if self.pool is not None:
            size = max(0, self.pool.live + size - self.pool.peak)
        if self.total and self.used + size > self.total:
            raise self.rules.memory(operator, size, self.used, self.total)

    def take(self, operator: str, size: int) -> Allocation:
        """Count an allocation. Raises RuleBroken when it does not fit."""
        self.check(operator, size)
        pool = self.pool
        if pool is None:
            self.add(size)
        else:
            pool.live += size
            self.add(max(0, pool.live - pool.peak))
            pool.peak = max(pool.peak, pool.live)
        return Allocation(self, size, pool)

    def add(self, size: int) -> None:
        """Change what is in use."""
        self.used += size
        self.peak = max(self.peak, self.used)

    def free(self, pool: Pool) -> None:
        """A graph is gone, with its memory."""
        if not pool.freed:
            pool.freed = True
            self.add(-pool.peak)


class Allocation:
    """One storage on the device; its tensors share it, and it is freed with the last of them."""

    __slots__ = ("meter", "pool", "size")

    def __init__(self, meter: Meter, size: int, pool: Pool | None) -> None:
        self.meter, self.size, self.pool = meter, size, pool

    def __del__(self) -> None:
        if self.pool is None:
            self.meter.used -= self.size
        else:
            self.pool.live -= self.size
