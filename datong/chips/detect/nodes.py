"""Step 2: device nodes. A node is what a process can open, so nodes say how many devices are within reach."""

from __future__ import annotations

from dataclasses import dataclass

from datong.chips.detect.machine import Machine
from datong.chips.detect.pci import Card
from datong.chips.schema import Stack

# Nodes here belong to the kernel's display subsystem, not to a vendor: they count only with a PCI card behind them.
_ANYONES = "/dev/dri/"


@dataclass(frozen=True)
class Node:
    """`/dev/davinci3`, number 3."""

    path: str
    number: int


def patterns(stack: Stack) -> list[str]:
    """The vendor's own node patterns; empty if unknown, or if the chip shows only in /dev/dri."""
    fact = stack.identity.device_nodes
    return [p for p in (fact.value or ()) if not p.startswith(_ANYONES)] if fact.usable else []


def display_patterns(stack: Stack) -> list[str]:
    """Node patterns under /dev/dri."""
    fact = stack.identity.device_nodes
    return [p for p in (fact.value or ()) if p.startswith(_ANYONES)] if fact.usable else []


def scan(machine: Machine, stack: Stack) -> list[Node]:
    """The stack's device nodes, by number. `/dev/gcu0vid1` is none: after the pattern's fixed part come only digits."""
    found: dict[int, Node] = {}
    for pattern in patterns(stack):
        start = pattern.split("[")[0].split("*")[0]
        for path in machine.glob(pattern):
            digits = path.removeprefix(start)
            if digits.isascii() and digits.isdigit() and len(digits) <= 6 and machine.exists(path):
                found.setdefault(int(digits), Node(path, int(digits)))
    return [found[number] for number in sorted(found)]


def of_card(machine: Machine, stack: Stack, card: Card) -> str | None:
    """The display node of a card, if the stack uses such nodes and it is here: `/dev/dri/renderD128`."""
    starts = [p.split("[")[0].split("*")[0] for p in display_patterns(stack)]
    for start in reversed(starts):  # render nodes are listed after card nodes and are the ones to open
        for name in card.drm:
            path = f"{_ANYONES}{name}"
            if path.startswith(start) and machine.exists(path):
                return path
    return None


def managers(machine: Machine, stack: Stack) -> tuple[list[str], list[str]]:
    """Further nodes that the driver needs: those that are here, and those that are missing (`a|b`: one of them)."""
    fact = stack.identity.manager_nodes
    here, missing = [], []
    for entry in (fact.value or ()) if fact.usable else ():
        present = [p for p in entry.split("|") if machine.exists(p)]
        here += present
        missing += [] if present else [entry]
    return here, missing
