"""GGUF files: reader -> metadata, names, blocks, tokenizer -> Imported."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datong.importer.imported import Imported, Progress


def import_gguf(src: Path, progress: Progress | None = None) -> Imported:
    """See `importer.py`; loaded on the first call, because the graph library takes a second to load."""
    from datong.importer.gguf.importer import import_gguf as run

    return run(src, progress)
