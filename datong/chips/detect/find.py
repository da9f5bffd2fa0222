"""Which chips are here: five steps, strongest first, and the chain of reasons behind each device.

    1 PCI id        names the vendor for sure, and counts what is in the machine
    2 device node   counts what this process can reach; in a container fewer than PCI shows
    3 vendor tool   names product and memory
    4 library       tells apart stacks that share cards
    5 torch build   likewise; `torch.cuda.is_available()` is true on three vendors and is never asked

The first of (nodes, display nodes of PCI cards, rows of the tool, PCI cards) that shows devices gives the list; the
other steps are joined to it. Where two steps disagree, the device says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from datong.chips import load
from datong.chips.detect import nodes, pci, smi, software
from datong.chips.detect.chain import chain
from datong.chips.detect.clues import Clues
from datong.chips.detect.join import Unit, units
from datong.chips.detect.machine import Machine
from datong.chips.detect.result import Found, Reason, Step
from datong.chips.detect.visible import view
from datong.chips.schema import Generation, Stack

_TESTS: tuple[tuple[Step, str, Callable[[Clues, Unit], bool]], ...] = (
    ("smi", "a product", lambda clues, unit: unit.generation is not None),
    ("torch", "the adapter", lambda clues, unit: clues.software.adapter is not None),
    ("torch", "the build of torch", lambda clues, unit: clues.software.vendor_torch),
    ("library", "the toolkit", lambda clues, unit: clues.software.root is not None),
    ("library", "the library", lambda clues, unit: clues.software.library is not None),
)


@dataclass
class _Shared:
    """One device with every stack that it may belong to."""

    unit: Unit
    claims: list[tuple[Clues, Unit]] = field(default_factory=list)


def find(machine: Machine, stacks: Mapping[str, Stack] | None = None) -> list[Found]:
    """Every chip in the machine, by stack and then in the driver's order.

    Devices that this process cannot reach have no `index`. Raises ChipError if a descriptor is damaged.
    """
    known = stacks if stacks is not None else load.stacks()
    cards = pci.scan(machine, known.values())
    clues = [_clues(machine, stack, cards) for stack in known.values()]
    shared: dict[tuple[str, str], _Shared] = {}
    for clue in clues:
        for unit in units(machine, clue):
            shared.setdefault(unit.key, _Shared(unit)).claims.append((clue, unit))
    groups: dict[str, list[tuple[Clues, Unit, tuple[Stack, ...], Reason | None]]] = {}
    for device in shared.values():
        clue, unit, others, why = _choose(device.claims)
        groups.setdefault(clue.stack.name, []).append((clue, unit, others, why))
    return [found for name in sorted(groups) for found in _found(machine, groups[name])]


def _clues(machine: Machine, stack: Stack, cards: list[pci.Card]) -> Clues:
    own = [card for card in cards if pci.is_of(card, stack)]
    roots = software.roots(machine, stack)
    return Clues(
        stack=stack,
        cards=own,
        nodes=nodes.scan(machine, stack),
        managers=nodes.managers(machine, stack)[0],
        report=smi.ask(machine, stack, roots),
        software=software.look(machine, stack),
    )


def _choose(claims: list[tuple[Clues, Unit]]) -> tuple[Clues, Unit, tuple[Stack, ...], Reason | None]:
    """One stack of those that share a device: by generation, adapter, build of torch, toolkit, library, in this order.

    What remains undecided is listed as alternatives of the first.
    """
    if len(claims) == 1:
        return (*claims[0], (), None)
    names = ", ".join(clue.stack.name for clue, _ in claims)
    left, by, by_step = claims, "", _TESTS[0][0]
    for step, text, test in _TESTS:
        fits = [(c, u) for c, u in left if test(c, u)]
        if fits and len(fits) < len(left):
            left, by, by_step = fits, text, step
        if len(left) == 1:
            break
    clue, unit = left[0]
    looked = f"stacks with this device: {names}"
    if len(left) == 1:
        return clue, unit, (), Reason(by_step, looked, f"{by} of one of them", f"so it is {clue.stack.name}")
    others = tuple(c.stack for c, _ in left[1:])
    return clue, unit, others, Reason("library", looked, "no difference", "cannot be told; the first is taken")


def _found(machine: Machine, members: list[tuple[Clues, Unit, tuple[Stack, ...], Reason | None]]) -> list[Found]:
    """The devices of one stack, with the indices that this process uses."""
    clue = members[0][0]
    reach = [unit for _, unit, _, _ in members if unit.reachable]
    seen = view(machine, clue.stack, len(reach))
    index = {id(unit): seen.indices[i] for i, unit in enumerate(reach)}
    doubts = (*clue.doubts(len(reach), machine.container), *seen.doubts)
    found = []
    for own, unit, others, why in members:
        reasons = [*chain(own, unit), *([why] if why else []), *([seen.reason] if seen.reason else [])]
        found.append(
            Found(
                stack=own.stack,
                generation=unit.generation,
                index=index.get(id(unit)),
                physical=unit.number,
                name=_name(own.stack, unit.generation, unit.row),
                memory_bytes=unit.row.memory_bytes if unit.row else None,
                node=unit.node,
                address=unit.card.address if unit.card else (unit.row.bus if unit.row else None),
                numa=unit.card.numa if unit.card else None,
                reasons=tuple(reasons),
                doubts=(*doubts, *unit.doubts),
                alternatives=others,
            )
        )
    return found


def _name(stack: Stack, generation: Generation | None, row: smi.Row | None) -> str:
    if row and row.product:
        return row.product
    return generation.title if generation else stack.title
