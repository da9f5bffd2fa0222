"""How tokens are chosen when the command line does not say: as the package's generation_config.json does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from datong.cli.console import warn
from datong.errors import InvalidRequest

if TYPE_CHECKING:
    from datong.package.reader import Package

GREEDY = {"temperature": 0.0}
# For a conversation with a model that states nothing: small models repeat themselves when the likeliest token always
# wins, and wander off near temperature 1.
CONVERSATION = {"temperature": 0.6, "top_p": 0.9}
# What transformers fills in where a config that samples leaves something out.
_SAMPLED = {"temperature": 1.0, "top_k": 50}
_KEYS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


def sampling(package: Package, given: Mapping[str, Any], otherwise: Mapping[str, float]) -> dict[str, Any]:
    """Settings for `generate`: those given (not None), then the package's, then `otherwise`.

    The package's count as transformers reads them: `do_sample` switches temperature, top_k, top_p and min_p on; a
    repetition penalty always counts. A value that is out of range is left out, with a warning.
    """
    stated = _stated(package)
    chosen = {key: value for key, value in given.items() if value is not None}
    penalty = {key: value for key, value in stated.items() if key == "repetition_penalty"}
    sampled = {**_SAMPLED, **stated} if len(stated) > len(penalty) else otherwise
    return {**sampled, **penalty, **chosen}


def _stated(package: Package) -> dict[str, Any]:
    """The valid settings of generation_config.json that count."""
    from datong.engine.sampler import SamplingParams

    config = package.generation_config()
    stated: dict[str, Any] = {}
    for key in _KEYS:
        value = config.get(key)
        if value is None or (key != "repetition_penalty" and config.get("do_sample") is not True):
            continue
        try:
            SamplingParams(**{key: value})
        except (InvalidRequest, TypeError) as error:
            why = error.message if isinstance(error, InvalidRequest) else f"`{value}` came"
            warn(f"generation_config.json: {why}; this setting is left out")
            continue
        stated[key] = value
    if config.get("do_sample") is True and not stated.keys() - {"repetition_penalty"}:
        stated["temperature"] = _SAMPLED["temperature"]
    return stated


def sentence(settings: Mapping[str, Any]) -> str:
    """`greedy`, or `temperature 0.6, top_p 0.9`: what deviates from taking the likeliest token."""
    greedy = not settings.get("temperature")
    neutral = {"temperature": 0, "top_k": 0, "top_p": 1, "min_p": 0, "repetition_penalty": 1}
    shown = ("repetition_penalty",) if greedy else _KEYS
    words = [f"{key} {settings[key]:g}" for key in shown if settings.get(key, neutral[key]) != neutral[key]]
    return ", ".join(["greedy", *words] if greedy else words)
