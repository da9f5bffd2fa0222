"""Which description of reasoning and tool calls fits a model: read off its chat template, else off its family.

One file per format in `data/`: `spec/dialogue.py`, `marks` that are all in the chat template of a model that writes so,
and `without`, marks that are not. Of several that fit, the one with more marks. `families`: model types whose templates
do not say it.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from datong.errors import ImportFailed
from datong.spec.dialogue import NAME, Dialogue, encode, problem

DATA = Path(__file__).parent / "data"


class _Entry(msgspec.Struct, frozen=True):
    """One file: the description, and how it is recognised."""

    dialogue: Dialogue
    marks: tuple[str, ...]
    without: tuple[str, ...]
    families: tuple[str, ...]

    def fits(self, template: str) -> bool:
        """Does the template show this format?"""
        return all(m in template for m in self.marks) and not any(m in template for m in self.without)


@cache
def entries() -> tuple[_Entry, ...]:
    """All formats, those with more marks first. Raises ImportFailed for a broken file."""
    found = [_read(path) for path in sorted(DATA.glob("*.toml"))]
    return tuple(sorted(found, key=lambda entry: -len(entry.marks)))


def choose(template: str | None, family: str) -> Dialogue | None:
    """The format of a model. None: its template shows none of those we know.

    Args:
        template: source of its chat template.
        family: importer/models/<family>.py.
    """
    for entry in entries():
        if template is not None and entry.fits(template):
            return entry.dialogue
    return next((entry.dialogue for entry in entries() if family in entry.families), None)


def dialogue_file(template: str | None, family: str) -> dict[str, bytes]:
    """The file that a package carries, by name; empty where `choose` finds none."""
    found = choose(template, family)
    return {NAME: encode(found)} if found else {}


def _read(path: Path) -> _Entry:
    try:
        table: dict[str, Any] = msgspec.toml.decode(path.read_bytes(), type=dict[str, Any])
        lists = [msgspec.convert(table.pop(key, []), tuple[str, ...]) for key in ("marks", "without", "families")]
        dialogue = msgspec.convert(table, Dialogue)
        entry = _Entry(dialogue, *lists)
    except msgspec.DecodeError as error:
        text = f"a dialogue should read as spec/dialogue.py says, and have `marks`: {error}"
        raise ImportFailed(path.name, text) from None
    if dialogue.name != path.stem or not entry.marks:
        raise ImportFailed(path.name, f"the name inside should be `{path.stem}`, and there should be a mark")
    if (wrong := problem(dialogue)) is not None:
        raise ImportFailed(path.name, wrong)
    return entry
