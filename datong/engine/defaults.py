"""How tokens are chosen when the caller does not say: as the package's generation_config.json does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from datong.engine.sampler import SamplingParams
from datong.errors import InvalidRequest

if TYPE_CHECKING:
    from datong.package.reader import Package

# What transformers fills in where a config that samples leaves something out.
_SAMPLED = {"temperature": 1.0, "top_k": 50}
KEYS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


def sampling(
    package: Package, given: Mapping[str, Any], otherwise: Mapping[str, float], warn: Callable[[str], None]
) -> dict[str, Any]:
    """Settings for `generate`: those given (not None), then the package's, then `otherwise`.

    The package's count as transformers reads them: `do_sample` switches temperature, top_k, top_p and min_p on; a
    repetition penalty always counts. A value that is out of range is left out, and `warn` is told.
    """
    stated = _stated(package, warn)
    chosen = {key: value for key, value in given.items() if value is not None}
    penalty = {key: value for key, value in stated.items() if key == "repetition_penalty"}
    sampled = {**_SAMPLED, **stated} if len(stated) > len(penalty) else otherwise
    return {**sampled, **penalty, **chosen}


def _stated(package: Package, warn: Callable[[str], None]) -> dict[str, Any]:
    """The valid settings of generation_config.json that count."""
    config = package.generation_config()
    stated: dict[str, Any] = {}
    for key in KEYS:
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
