"""Reads the descriptors, and finds the one that a device name means."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import msgspec

from datong.chips.check import problems
from datong.chips.schema import Generation, Stack
from datong.errors import BackendMissing, ChipError

DATA = Path(__file__).parent / "data"


@dataclass(frozen=True)
class Chip:
    """A generation with its stack: what a backend is given."""

    stack: Stack
    generation: Generation

    @property
    def name(self) -> str:
        """`ascend-a2`."""
        return f"{self.stack.name}-{self.generation.name}"


def read(path: Path) -> Stack:
    """One descriptor. Raises ChipError with the file, the place and what was wanted."""
    try:
        stack = msgspec.toml.decode(path.read_bytes(), type=Stack)
    except (OSError, UnicodeDecodeError, msgspec.DecodeError) as error:
        text, _, place = str(error).partition(" - at `$.")
        where = f"{path.name}: {place.rstrip('`')}" if place else path.name
        raise ChipError(where, f"a chip descriptor should read as chips/schema.py says, got: {text}") from error
    if stack.name != path.stem:
        raise ChipError(path.name, f"the name inside should be `{path.stem}`, is `{stack.name}`")
    for place, text in problems(stack):
        raise ChipError(f"{path.name}: {place}", text)
    return stack


@cache
def stacks() -> dict[str, Stack]:
    """Every descriptor, by name, in alphabetic order."""
    return {path.stem: read(path) for path in sorted(DATA.glob("*.toml"))}


def chips() -> list[Chip]:
    """Every generation of every stack."""
    return [Chip(stack, generation) for stack in stacks().values() for generation in stack.generations]


def find(name: str) -> Chip:
    """The chip that a name means: `ascend-a2`, `ascend-910b` (a product), or `metax` (its first generation).

    Raises BackendMissing with the nearest names.
    """
    known: dict[str, Chip] = {}
    for chip in chips():
        known.setdefault(chip.stack.name, chip)
        for alias in (chip.generation.name, *chip.generation.products):
            known.setdefault(f"{chip.stack.name}-{alias}", chip)
    if name.lower() in known:
        return known[name.lower()]
    near = difflib.get_close_matches(name.lower(), known, n=3) or sorted(known)[:8]
    raise BackendMissing("chips", f"`{name}` should be a chip that has a descriptor", f"nearest: {', '.join(near)}")
