"""Step 1: PCI. The vendor id names the stack, the device id the generation where it is known.

A vendor sells more than chips: only functions of a class that an accelerator can have count. Ids that the descriptor
lists as `pci_others` do not (Huawei's board controller is a display, too).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from datong.chips.detect.machine import Machine
from datong.chips.schema import Generation, Stack

DIRECTORY = "/sys/bus/pci/devices"

# PCI Code and ID Assignment: base class 03 display, 12 processing accelerators, subclass 0B40 co-processor.
_CLASSES = ("03", "12", "0b40")


@dataclass(frozen=True)
class Card:
    """One PCI function that may be a chip."""

    address: str  # "0000:9d:00.0"
    vendor: str  # "0x19e5"
    device: str  # "0xd802", "" if unreadable
    kind: str  # class, "0x120000"
    numa: int | None
    drm: tuple[str, ...]  # its nodes under /dev/dri: "card1", "renderD128"


def scan(machine: Machine, stacks: Collection[Stack]) -> list[Card]:
    """Every accelerator or display of a vendor that some descriptor names, by address."""
    vendors = {_hex(v) for s in stacks if (v := s.identity.pci_vendor.value)}
    cards = []
    for address in machine.names(DIRECTORY):
        vendor = _id(machine, address, "vendor")
        if vendor is None or _hex(vendor) not in vendors:
            continue
        kind = _id(machine, address, "class") or ""
        if not kind.removeprefix("0x").startswith(_CLASSES):
            continue
        numa = machine.read(f"{DIRECTORY}/{address}/numa_node") or ""
        cards.append(
            Card(
                address,
                vendor,
                _id(machine, address, "device") or "",
                kind,
                int(numa) if numa.isdecimal() else None,  # -1: the machine has no NUMA nodes
                tuple(machine.names(f"{DIRECTORY}/{address}/drm", 16)),
            )
        )
    return cards


def is_of(card: Card, stack: Stack) -> bool:
    """Is the card one of this stack's chips?"""
    vendor, others = stack.identity.pci_vendor, stack.identity.pci_others
    if not vendor.usable or _hex(vendor.value or "") != _hex(card.vendor):
        return False
    return not (others.usable and _hex(card.device) in {_hex(d) for d in others.value or ()})


def generation(card: Card, stack: Stack) -> Generation | None:
    """The one generation whose device ids hold this card's; None if none or several do."""
    fits = [
        g
        for g in stack.generations
        if g.pci_devices.usable and _hex(card.device) in {_hex(d) for d in g.pci_devices.value or ()}
    ]
    return fits[0] if len(fits) == 1 else None


def same_address(a: str, b: str) -> bool:
    """Tools write the domain with 8, 4 or no digits: `00000000:9D:00.0`, `0000:9d:00.0`, `9d:00.0`."""
    left, right = a.lower().split(":"), b.lower().split(":")
    if left[-2:] != right[-2:]:
        return False
    return len(left) < 3 or len(right) < 3 or left[0].lstrip("0") == right[0].lstrip("0")


def _id(machine: Machine, address: str, name: str) -> str | None:
    """`0x19e5` of a file in the function's directory; None if it is missing, unreadable or no number."""
    path = f"{DIRECTORY}/{address}/{name}"
    text = machine.read(path)
    if text is None:
        return None
    if _hex(text) is None:
        machine.troubled(f"{path} should hold a number such as 0x19e5, holds `{text[:20]}`")
        return None
    return text.lower()


def _hex(text: str) -> int | None:
    try:
        return int(text, 16)
    except ValueError:
        return None
