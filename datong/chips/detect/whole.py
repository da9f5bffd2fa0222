"""The search on this very machine, once per process: tools of vendors take seconds to answer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from datong.chips.detect.diagnose import diagnose, hurdles, usable
from datong.chips.detect.find import find
from datong.chips.detect.machine import Machine
from datong.chips.detect.result import Finding, Found
from datong.chips.load import Chip


@dataclass(frozen=True)
class Survey:
    """What was found on a machine, and what is missing there."""

    machine: Machine
    found: list[Found]
    findings: list[Finding]

    @property
    def usable(self) -> list[Found]:
        """Devices that nothing known keeps a program from."""
        return usable(self.found, self.findings)

    def chip(self, stack: str, index: int = 0) -> Chip | None:
        """The chip behind `ascend:1`, if it is here and its generation could be told."""
        for found in self.found:
            if found.stack.name == stack and found.index == index and found.generation:
                return Chip(found.stack, found.generation)
        return None

    def hurdles(self, device: Found) -> list[Finding]:
        """What keeps programs from a device."""
        return hurdles(device, self.findings)


def survey(machine: Machine) -> Survey:
    """Look, then diagnose."""
    found = find(machine)
    return Survey(machine, found, diagnose(machine, found))


@cache
def here() -> Survey:
    """The machine that this process runs on, never a recorded one."""
    return survey(Machine())
