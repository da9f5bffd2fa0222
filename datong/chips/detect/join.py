"""Joins what the steps saw into devices: which node, which PCI card and which row of the tool are the same thing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from datong.chips.detect import nodes, pci, smi
from datong.chips.detect.clues import Clues
from datong.chips.detect.machine import Machine
from datong.chips.schema import Generation

T = TypeVar("T")


@dataclass(frozen=True)
class Unit:
    """One device, as far as the steps agree."""

    key: tuple[str, str]  # what it is the same thing by, for another stack: ("node", "/dev/davinci3")
    number: int | None  # the driver's
    node: str | None
    card: pci.Card | None
    row: smi.Row | None
    generation: Generation | None
    reachable: bool
    doubts: tuple[str, ...] = ()


def units(machine: Machine, clues: Clues) -> list[Unit]:
    """The devices of one stack, in the driver's order; see find.py for which step gives the list."""
    if clues.nodes:
        return _by_node(clues)
    displays = [nodes.of_card(machine, clues.stack, card) for card in clues.cards]
    if any(displays):
        return _by_display(clues, displays)
    if clues.report.rows:
        return _by_row(clues)
    expects_nodes = bool(nodes.patterns(clues.stack) or nodes.display_patterns(clues.stack))
    return [_unit(clues, ("pci", card.address), None, None, card, None, not expects_nodes) for card in clues.cards]


def _by_node(clues: Clues) -> list[Unit]:
    numbers = [node.number for node in clues.nodes]
    rows = _match([row.number for row in clues.report.rows], clues.report.rows, numbers)
    cards = _cards(clues, rows)
    return [
        _unit(clues, ("node", node.path), node.number, node.path, card, row, True)
        for node, card, row in zip(clues.nodes, cards, rows, strict=True)
    ]


def _by_display(clues: Clues, displays: list[str | None]) -> list[Unit]:
    by_bus = {i: row for row in clues.report.rows for i, card in enumerate(clues.cards)
              if row.bus and pci.same_address(row.bus, card.address)}  # fmt: skip
    here = [i for i, path in enumerate(displays) if path]
    if not by_bus and len(clues.report.rows) == len(here):
        by_bus = dict(zip(here, clues.report.rows, strict=True))
    found = []
    for i, (card, path) in enumerate(zip(clues.cards, displays, strict=True)):
        row = by_bus.get(i)
        found.append(_unit(clues, ("pci", card.address), row.number if row else i, path, card, row, path is not None))
    return found


def _by_row(clues: Clues) -> list[Unit]:
    """The tool sees devices without nodes that we know of: trusted if the stack's node pattern is unknown."""
    expects_nodes = bool(nodes.patterns(clues.stack) or nodes.display_patterns(clues.stack))
    rows = list(clues.report.rows)
    cards = _cards(clues, list(rows))
    key = clues.report.command
    return [
        _unit(clues, (key, str(row.number)), row.number, None, card, row, not expects_nodes)
        for row, card in zip(rows, cards, strict=True)
    ]


def _match(numbers: Sequence[int], things: Sequence[T], wanted: Sequence[int]) -> list[T | None]:
    """By number where every wanted one is there; else by order, if there are as many; else not at all."""
    by_number = dict(zip(numbers, things, strict=True))
    if all(number in by_number for number in wanted):
        return [by_number[number] for number in wanted]
    return list(things) if len(things) == len(wanted) else [None] * len(wanted)


def _cards(clues: Clues, rows: Sequence[smi.Row | None]) -> list[pci.Card | None]:
    """The PCI card of each device: by the address that the tool prints; else by order, if there are as many."""
    if rows and all(row is not None and row.bus for row in rows):
        return [
            next((c for c in clues.cards if row and row.bus and pci.same_address(row.bus, c.address)), None)
            for row in rows
        ]
    return list(clues.cards) if len(clues.cards) == len(rows) else [None] * len(rows)


def _unit(
    clues: Clues,
    key: tuple[str, str],
    number: int | None,
    node: str | None,
    card: pci.Card | None,
    row: smi.Row | None,
    reachable: bool,
) -> Unit:
    by_name = smi.generation(row.product, clues.stack) if row else None
    by_id = pci.generation(card, clues.stack) if card else clues.common_generation
    doubts: tuple[str, ...] = ()
    if by_name and by_id and by_name is not by_id:
        doubts = (f"the tool's name says {by_name.title}, the PCI id says {by_id.title}",)
    return Unit(key, number, node, card, row, by_name or by_id, reachable, doubts)
