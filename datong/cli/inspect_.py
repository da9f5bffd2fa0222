"""`datong inspect`: what is in a package."""

from __future__ import annotations

from typing import Any

from datong.cli import options
from datong.cli.console import print_json, progress, show


def inspect_(model: options.Model, as_json: options.Json = False) -> None:
    """Show what is in a package.

    Operators, element types, sizes, cache per token, context length and licence.
    """
    from datong.package.describe import describe
    from datong.package.store import resolve

    with progress() as report:
        facts = describe(resolve(model, report))
    if as_json:
        print_json(facts)
    else:
        print_facts(facts)


def print_facts(facts: dict[str, Any]) -> None:
    """The tables of `package.describe`, on stdout."""
    from datong.package.describe import render

    show(render(facts))
