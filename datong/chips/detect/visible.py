"""Who may see which device: variables that hide devices from a process, and what a container was given.

A process counts the devices that it sees from 0, whatever numbers their nodes carry.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from datong.chips.detect.machine import Machine
from datong.chips.detect.result import Reason
from datong.chips.schema import Stack

_NUMBER = re.compile(r"-?[0-9]{1,9}")


@dataclass(frozen=True)
class View:
    """The process index of each device in reach, in the driver's order; None: hidden, or not to be told."""

    indices: tuple[int | None, ...]
    reason: Reason | None = None
    doubts: tuple[str, ...] = ()


def view(machine: Machine, stack: Stack, count: int) -> View:
    """How this process counts `count` devices.

    The rule is CUDA's, which the vendors follow: a list of numbers gives the order; the list ends at the first number
    that names no device; an empty list or -1 hides all. Names (UUIDs) cannot be resolved without the driver.
    """
    doubts = _container_doubts(machine, stack, count)
    fact = stack.adapter.visible_process
    text = machine.environ.get(fact.value) if fact.usable and fact.value else None
    if text is None:
        return View(tuple(range(count)), None, doubts)
    name, entries = str(fact.value), [part.strip() for part in text.split(",")]
    seen = f"{name}={text}"
    if not text.strip():
        entries = []
    if not all(_NUMBER.fullmatch(e) for e in entries):
        reason = Reason("visible", f"environment: {name}", seen, "devices are named, not numbered: order unknown")
        return View((None,) * count, reason, (*doubts, f"{seen} names devices by other things than numbers"))
    order: list[int] = []
    for entry in map(int, entries):
        if not 0 <= entry < count or entry in order:
            if entry != -1:
                what = f"{entry} twice" if entry in order else f"{entry}, and {count} are in reach"
                doubts = (*doubts, f"{seen} names device {what}: the list ends there")
            break
        order.append(entry)
    indices = tuple(order.index(i) if i in order else None for i in range(count))
    return View(indices, Reason("visible", f"environment: {name}", seen, f"{len(order)} of {count} are shown"), doubts)


def _container_doubts(machine: Machine, stack: Stack, count: int) -> tuple[str, ...]:
    """The container's variable against the nodes that are here."""
    fact = stack.adapter.visible_container
    if not fact.usable or not fact.value or fact.value == stack.adapter.visible_process.value:
        return ()
    text = machine.environ.get(fact.value, "").strip()
    given = [p for p in text.split(",") if p.strip().isdigit()]
    if not text or len(given) != len(text.split(",")) or len(given) == count:
        return ()
    return (f"{fact.value}={text} asks for {len(given)} devices, and {count} are in reach",)
