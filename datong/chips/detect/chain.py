"""Writes down, for one device, what each step looked at, saw and concluded."""

from __future__ import annotations

from collections.abc import Iterator

from datong.chips.detect import pci, smi
from datong.chips.detect.clues import Clues
from datong.chips.detect.join import Unit
from datong.chips.detect.result import Reason
from datong.chips.detect.words import counted, whose


def chain(clues: Clues, unit: Unit) -> Iterator[Reason]:
    """The reasons of one device, in the order of the steps. A step that can say nothing says why."""
    yield _pci(clues, unit)
    yield _node(clues, unit)
    yield _smi(clues, unit)
    yield _library(clues)
    yield _torch(clues)


def _pci(clues: Clues, unit: Unit) -> Reason:
    stack, card = clues.stack, unit.card
    vendor = stack.identity.pci_vendor
    where = f"{pci.DIRECTORY}/*/vendor"
    if not vendor.usable:
        return Reason("pci", where, f"the vendor id of {stack.vendor} is not known", "says nothing")
    if card:
        generation = pci.generation(card, stack)
        told = (
            f"{stack.vendor}, {generation.title}"
            if generation
            else f"{stack.vendor}; the device id tells no generation"
        )
        return Reason("pci", f"{pci.DIRECTORY}/{card.address}", f"{card.vendor}:{card.device or '?'}", told)
    if clues.cards:
        saw = f"{counted(len(clues.cards), 'card')} of {vendor.value}"
        return Reason("pci", where, saw, f"{stack.vendor} is in the machine; which card this device is, is not told")
    return Reason("pci", where, f"no accelerator of {vendor.value}", "no support from PCI")


def _node(clues: Clues, unit: Unit) -> Reason:
    fact = clues.stack.identity.device_nodes
    if not fact.usable:
        return Reason("node", "/dev", "the names of the nodes are not known", "says nothing")
    looked = ", ".join(fact.value or ())
    if unit.node is None:
        return Reason("node", looked, "none for this device", "the process cannot reach it")
    display = unit.node not in {n.path for n in clues.nodes}
    told = "the display node of this PCI card" if display else f"device {unit.number} of the driver, within reach"
    return Reason("node", looked, unit.node, told)


def _smi(clues: Clues, unit: Unit) -> Reason:
    report, tool = clues.report, clues.stack.identity.smi
    if not tool.usable:
        return Reason("smi", "the vendor's tool", "its name is not known", "says nothing")
    if report.output.state == "absent":
        return Reason("smi", str(tool.value), "it is not installed", "says nothing")
    if not report.rows:
        return Reason("smi", report.command, report.doubt, "says nothing about the device")
    if unit.row is None:
        return Reason("smi", report.command, counted(len(report.rows), "device"), "which one this is, is not told")
    memory = f", {unit.row.memory_bytes // 2**20} MiB" if unit.row.memory_bytes else ""
    generation = smi.generation(unit.row.product, clues.stack)
    told = generation.title if generation else "the name tells no generation that we know"
    return Reason("smi", report.command, f"device {unit.row.number}: {unit.row.product or 'no name'}{memory}", told)


def _library(clues: Clues) -> Reason:
    fact = clues.stack.identity.library
    if not fact.usable:
        return Reason("library", "management library", "its name is not known", "says nothing")
    path = clues.software.library
    told = f"{whose(clues.stack.vendor)} driver package is installed" if path else "no support from the library"
    return Reason("library", ", ".join(fact.value or ()), path or "not found", told)


def _torch(clues: Clues) -> Reason:
    software, adapter = clues.software, clues.stack.adapter
    package = adapter.package.value if adapter.package.usable and adapter.package.value else ""
    looked = "distribution torch" + (f", {package}" if package and package != "torch" else "")
    saw = f"torch {software.torch}" if software.torch else "torch is not installed"
    if software.adapter:
        return Reason("torch", looked, f"{saw}, {package} {software.adapter}", f"made for {clues.stack.vendor}")
    if software.vendor_torch:
        return Reason("torch", looked, saw, f"{whose(clues.stack.vendor)} own build")
    return Reason("torch", looked, saw, "says nothing about the chip")
