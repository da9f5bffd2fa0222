"""The backend to copy: a small complete one. `datong new-backend NAME` makes a project of it.

It runs the whole core tier in this process, so that models run from the first minute; you replace one kernel after the
other by your chip's. docs/howto/add-a-chip.md walks through it. Lines marked CHIP are where yours differs.
"""

from __future__ import annotations

from datong.backends.template.backend import TemplateBackend

__all__ = ["TemplateBackend", "create"]


def create() -> TemplateBackend:
    """Make the backend: what the entry point names."""
    return TemplateBackend()
