"""What the search says: chips, the chain of reasons behind each, and findings about what is missing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from datong.chips.schema import Generation, Stack

Step = Literal["pci", "node", "smi", "library", "torch", "visible"]
State = Literal["ok", "note", "missing", "broken"]


@dataclass(frozen=True)
class Reason:
    """One link of the chain."""

    step: Step
    looked_at: str  # path, command, distribution or variable
    saw: str
    conclusion: str


@dataclass(frozen=True)
class Found:
    """One device: what the driver counts as one, so a board with two chips gives two."""

    stack: Stack
    generation: Generation | None  # None: nothing that was seen tells it
    index: int | None  # as this process counts, from 0; None: the process cannot reach it, or cannot know
    physical: int | None  # as driver and node count
    name: str  # as the vendor's tool calls it, else the generation's title, else the stack's
    memory_bytes: int | None
    node: str | None
    address: str | None  # PCI: `0000:9d:00.0`
    numa: int | None
    reasons: tuple[Reason, ...]
    doubts: tuple[str, ...] = ()  # where two steps contradict each other, or one could not say
    alternatives: tuple[Stack, ...] = ()  # further stacks that what was seen fits as well
    evidence: str = "not run"  # finding a chip runs nothing on it

    @property
    def device(self) -> str | None:
        """What a user types, `ascend:0`; None without an index."""
        return None if self.index is None else f"{self.stack.name}:{self.index}"

    def to_json(self) -> dict[str, Any]:
        """Everything, as plain data."""
        return {
            "device": self.device,
            "stack": self.stack.name,
            "vendor": self.stack.vendor,
            "generation": self.generation.name if self.generation else None,
            "name": self.name,
            "index": self.index,
            "physical_index": self.physical,
            "memory_bytes": self.memory_bytes,
            "node": self.node,
            "pci_address": self.address,
            "numa_node": self.numa,
            "evidence": self.evidence,
            "alternatives": [s.name for s in self.alternatives],
            "reasons": [vars(r) for r in self.reasons],
            "doubts": list(self.doubts),
        }


@dataclass(frozen=True)
class Finding:
    """One line of a diagnosis. `missing` and `broken` keep programs from the chip; `note` does not."""

    stack: str  # "" if it is about the machine
    what: str  # driver, permission, container, tool, toolkit, torch, adapter, count, software, files
    state: State
    detail: str
    hint: str = ""
    grade: str = ""  # of the fact behind the hint
    source: str = ""
    node: str | None = None  # the one device that it is about; None: all of the stack

    @property
    def stops(self) -> bool:
        """Does it keep programs from the chip?"""
        return self.state in ("missing", "broken")
