"""How tokens are chosen when the command line does not say (engine/defaults.py), and how that is shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from datong.cli.console import warn

if TYPE_CHECKING:
    from datong.package.reader import Package

GREEDY = {"temperature": 0.0}
# For a conversation with a model that states nothing: small models repeat themselves when the likeliest token always
# wins, and wander off near temperature 1.
CONVERSATION = {"temperature": 0.6, "top_p": 0.9}


def sampling(package: Package, given: Mapping[str, Any], otherwise: Mapping[str, float]) -> dict[str, Any]:
    """Settings for `generate`: those given (not None), then the package's, then `otherwise`."""
    from datong.engine.defaults import sampling

    return sampling(package, given, otherwise, warn)


def sentence(settings: Mapping[str, Any]) -> str:
    """`greedy`, or `temperature 0.6, top_p 0.9`: what deviates from taking the likeliest token."""
    from datong.engine.defaults import KEYS

    greedy = not settings.get("temperature")
    neutral = {"temperature": 0, "top_k": 0, "top_p": 1, "min_p": 0, "repetition_penalty": 1}
    shown = ("repetition_penalty",) if greedy else KEYS
    words = [f"{key} {settings[key]:g}" for key in shown if settings.get(key, neutral[key]) != neutral[key]]
    return ", ".join(["greedy", *words] if greedy else words)
