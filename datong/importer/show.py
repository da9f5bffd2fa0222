"""A stranger's value inside an error message: one line, escaped, short."""

from __future__ import annotations

from typing import Any


def show(value: Any) -> str:
    """`value` in backticks when it is printable text, else in Python's ASCII notation; at most 120 characters."""
    text = f"`{value}`" if isinstance(value, str) and value.isprintable() else ascii(value)
    return text if len(text) <= 120 else text[:100] + "…"
