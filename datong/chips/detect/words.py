"""Words for sentences."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """`1 device`, `2 devices`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def whose(name: str) -> str:
    """`MetaX's`, `Moore Threads'`."""
    return f"{name}'" if name.endswith("s") else f"{name}'s"
