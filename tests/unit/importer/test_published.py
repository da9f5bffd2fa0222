"""Configs with the keys of published ones: none is refused, and none is left unread.

tests/data/published.json has them without token lists, names of classes and what stands in `vision_config`; where a
release has several, the keys of all. Some are quoted from public repositories and model cards, the others are written
down from facts known about the releases: a key here is evidence that an importer should know it, not that a release
has it. Three of MiniMax-M2 could not be confirmed: `layernorm_*_beta`, `swa_rope_theta`, `mlp_intermediate_size`.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from datong.errors import ConfigError
from datong.importer import checkpoint, registry
from datong.importer.config import Config
from datong.importer.models.decoder import Decoder, contradiction

GOLDENS = Path(__file__).parents[2] / "data" / "goldens"
CONFIGS: dict[str, dict[str, Any]] = json.loads((Path(__file__).parents[2] / "data" / "published.json").read_text())


def read(values: dict[str, Any]) -> Decoder:
    config = Config(values, values["model_type"])
    decoder = registry.FAMILIES[values["model_type"]](config)
    config.finish()
    return decoder


@pytest.mark.parametrize("name", CONFIGS)
def test_every_key_is_known(name: str) -> None:
    values = CONFIGS[name]
    decoder, text = read(values), values.get("text_config", values)
    assert len(decoder.layers) == text["num_hidden_layers"] and decoder.vocab == text["vocab_size"]
    assert (decoder.context or decoder.ropes[0].context_length) == text["max_position_embeddings"]
    assert not contradiction(decoder)


@pytest.mark.parametrize(
    ("name", "changes", "text"),
    [
        ("gpt-oss-20b", {"experts_per_token": 5}, "mean the same and contradict"),
        ("Step-3.5-Flash", {"share_expert_dims": 5}, "mean the same and contradict"),
        ("Step-3.5-Flash", {"use_rope_layers": [0, 1]}, "`use_rope_layers` should be"),
        ("MiniMax-M2", {"layernorm_mlp_beta": 2.0}, "`layernorm_mlp_beta` should be 1.0"),
        ("MiniMax-M2", {"sliding_window": 4096}, "`sliding_window` should be None"),
        ("Qwen3-Next", {"use_sliding_window": True}, "`use_sliding_window` should be False"),
    ],
)
def test_keys_that_would_change_the_logits(name: str, changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        read(CONFIGS[name] | changes)


def test_step3p7_under_the_name_of_its_tower() -> None:
    weights = checkpoint.read_weights(GOLDENS / "step3p7")
    text = [name for name in weights.weights if re.match(r"model\.(layers|norm|embed_tokens)\.", name)]
    weights.weights |= {n.replace("model.", "model.language_model.", 1): weights.weights.pop(n) for n in text}
    more = "model.language_model.layers.5.eh_proj.weight"
    weights.weights[more] = weights.weights["lm_head.weight"]
    registry.build_model(json.loads((GOLDENS / "step3p7" / "config.json").read_text()), weights)
    assert len([n for n in weights.taken if "language_model" in n]) == len(text) and more in weights.ignored
