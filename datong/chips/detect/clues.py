"""What the five steps saw of one stack."""

from __future__ import annotations

from dataclasses import dataclass

from datong.chips.detect import nodes, pci
from datong.chips.detect.smi import Report
from datong.chips.detect.software import Software
from datong.chips.detect.words import counted
from datong.chips.schema import Generation, Stack


@dataclass(frozen=True)
class Clues:
    """What the five steps saw of one stack."""

    stack: Stack
    cards: list[pci.Card]
    nodes: list[nodes.Node]
    managers: list[str]
    report: Report
    software: Software

    @property
    def common_generation(self) -> Generation | None:
        """The generation that all PCI cards of the stack agree on."""
        found = [pci.generation(card, self.stack) for card in self.cards]
        return found[0] if found and all(g is found[0] for g in found) else None

    def doubts(self, reachable: int, container: bool) -> tuple[str, ...]:
        """Where the steps contradict each other. `reachable`: devices within reach of this process."""
        said = []
        here = "this container" if container else "this machine"
        if len(self.cards) > reachable > 0:
            said.append(
                f"PCI shows {counted(len(self.cards), 'card')}, {counted(reachable, 'device')} within reach of {here}"
            )
        if self.nodes and not self.cards and self.stack.identity.pci_vendor.usable:
            vendor = self.stack.identity.pci_vendor.value
            said.append(
                f"PCI shows no card of {vendor}, but there are device nodes: /sys is hidden, or they are left over"
            )
        rows = len(self.report.rows)
        if rows and reachable and rows != reachable:
            said.append(f"`{self.report.command}` lists {counted(rows, 'device')}, {reachable} within reach")
        if rows and not reachable:
            said.append(f"`{self.report.command}` lists {counted(rows, 'device')}, but no device node is here")
        if self.report.doubt:
            said.append(self.report.doubt)
        return tuple(said)
