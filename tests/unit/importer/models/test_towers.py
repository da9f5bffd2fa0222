"""Text towers: whose keys and tensors count, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datong.errors import ConfigError
from datong.importer import checkpoint, registry
from datong.importer.config import Config
from datong.importer.models import gemma3
from datong.importer.models.towers import TOWERS

GOLDENS = Path(__file__).resolve().parents[3] / "data" / "goldens"
GEMMA_12B = {  # google/gemma-3-12b-it: what its config.json says; the rest are the configuration class's defaults
    "hidden_size": 3840, "intermediate_size": 15360, "model_type": "gemma3_text", "num_attention_heads": 16,
    "num_hidden_layers": 48, "num_key_value_heads": 8, "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    "sliding_window": 1024,
}  # fmt: skip


def golden(name: str) -> dict[str, Any]:
    return json.loads((GOLDENS / name / "config.json").read_text())  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", sorted(TOWERS))
def test_only_tensors_of_images_are_left_out(name: str) -> None:
    weights = checkpoint.read_weights(GOLDENS / name)
    registry.build_model(golden(name), weights)
    assert (
        weights.taken
        and weights.ignored
        and set(weights.ignored.values()) == {"reads images; a text package computes without it"}
    )
    assert not any(".layers.0.self_attn.q_proj" in key and "vision" not in key for key in weights.ignored)
    assert weights.taken | set(weights.ignored) == set(weights.weights)


@pytest.mark.parametrize("name", sorted(TOWERS))
def test_a_key_that_nobody_knows(name: str) -> None:
    with pytest.raises(ConfigError, match="`novelty` is not known"):
        registry.build_model({**golden(name), "novelty": 1}, checkpoint.read_weights(GOLDENS / name))


def test_another_text_model_inside() -> None:
    values = golden("internvl_chat")
    values["llm_config"]["model_type"] = "gpt2"
    with pytest.raises(ConfigError, match="text tower's model_type `gpt2` is not known here\nhint: known: qwen2"):
        registry.build_model(values, checkpoint.read_weights(GOLDENS / "internvl_chat"))


def test_the_outside_says_whether_embeddings_are_tied() -> None:
    values = golden("internvl")
    assert values["tie_word_embeddings"] and not values["text_config"]["tie_word_embeddings"]
    assert registry.FAMILIES["internvl"](Config(values, "internvl")).tied


def test_gemma_as_published() -> None:
    outer = {"model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"], "torch_dtype": "bfloat16",
             "boi_token_index": 255999, "eoi_token_index": 256000, "eos_token_id": [1, 106], "initializer_range": 0.02,
             "image_token_index": 262144, "mm_tokens_per_image": 256, "text_config": GEMMA_12B,
             "transformers_version": "4.50.0.dev0", "vision_config": {}}  # fmt: skip
    config = Config(outer, "gemma3")
    decoder = registry.FAMILIES["gemma3"](config)
    config.finish()
    assert [layer.window for layer in decoder.layers[:7]] == [1024] * 5 + [0, 1024]
    assert decoder.vocab == 262208 and decoder.tied and decoder.layers[0].head_dim == 256
    assert decoder.embed_scale == 62.0, "sqrt(3840) in bf16"
    assert decoder.ropes[0].inv_freq[0] == np.float32(1 / 8) and decoder.ropes[1].inv_freq[0] == 1.0
    other = gemma3.read(Config({**GEMMA_12B, "torch_dtype": "float32"}, "gemma3_text"))
    assert other.embed_scale == float(np.float32(np.sqrt(3840)))


def test_longrope_ends_where_its_short_list_ends() -> None:
    values = golden("phi4_mini")
    decoder = registry.FAMILIES["phi3"](Config(values, "phi3"))
    assert decoder.ropes[0].context_length == 64 and values["max_position_embeddings"] == 256
    assert decoder.ropes[0].scale == pytest.approx(np.sqrt(1 + np.log(4) / np.log(64)))
    values["rope_parameters"]["long_factor"] = [1.0]
    with pytest.raises(ConfigError, match="`long_factor` should be a list of 6 numbers above 0"):
        registry.FAMILIES["phi3"](Config(values, "phi3"))
