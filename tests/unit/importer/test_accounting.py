"""Every family answers for each tensor and each config key: lost, misshapen, left over and unknown ones are named."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from datong.errors import CheckpointError, ConfigError, DatongError
from datong.importer import checkpoint, registry
from datong.importer.quantization.table import apply
from datong.importer.weights import WeightMap

GOLDENS = Path(__file__).parents[2] / "data" / "goldens"
NAMES = sorted(path.parent.name for path in GOLDENS.glob("*/config.json"))
INNER = ("text_config", "llm_config")
HEAD = re.compile(r"model\.layers\.5\.")  # of step3p5: heads for speculation may be missing


def read(name: str, change: Callable[[WeightMap], None] = lambda weights: None, **keys: Any) -> WeightMap:
    """Build with other tensors, and with other keys of the text model."""
    config = json.loads((GOLDENS / name / "config.json").read_text())
    config.update({k: v for k, v in keys.items() if k not in INNER})
    for k in INNER:
        if k in keys:
            config[k].update(keys[k])
    weights = checkpoint.read_weights(GOLDENS / name)
    change(weights)
    config, _ = apply(config, weights, GOLDENS / name)
    registry.build_model(config, weights)
    return weights


def test_goldens_are_checkpoints() -> None:
    """A package left in one of them would be opened in place of an import."""
    assert not [p for name in ("graph.onnx", "datong.json") for p in GOLDENS.rglob(name)] and len(NAMES) == 43


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_left_over_unseen(name: str) -> None:
    weights = read(name)
    assert not set(weights.left_over()) and all(weights.ignored.values())
    with pytest.raises(CheckpointError, match=r"1 tensors are not used by model_type `\w+`: `model.layers.0.widget"):
        read(name, lambda w: w.weights.update({"model.layers.0.widget.weight": next(iter(w.weights.values()))}))


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_key_is_named(name: str) -> None:
    config = json.loads((GOLDENS / name / "config.json").read_text())
    for keys in ({"num_widgets": 8}, *({inner: {"num_widgets": 8}} for inner in INNER if inner in config)):
        with pytest.raises(ConfigError, match="`num_widgets` is not known"):
            read(name, **keys)


@pytest.mark.parametrize("name", NAMES)
def test_a_lost_or_misshapen_tensor_is_named(name: str) -> None:
    """One of each kind: the last layer's, and the last expert's."""
    kinds = {re.sub(r"\d+", "N", tensor): tensor for tensor in sorted(read(name).taken) if not HEAD.match(tensor)}
    for tensor in kinds.values():
        for change in (lambda w, t=tensor: _lose(w, t), lambda w, t=tensor: _shorten(w, t)):
            try:
                read(name, change)
            except DatongError as error:
                assert tensor in error.message and "\n" not in error.message, tensor
            else:
                pytest.fail(f"nobody missed `{tensor}`")


def _lose(weights: WeightMap, name: str) -> None:
    for table in (weights.weights, weights.unusable, weights.others):
        table.pop(name, None)


def _shorten(weights: WeightMap, name: str) -> None:
    table: dict[str, Any] = weights.weights if name in weights.weights else weights.others
    table[name] = replace(table[name], shape=(table[name].shape[0] - 1, *table[name].shape[1:]))
