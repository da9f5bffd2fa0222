"""Families with latent attention: tensors and caches, defaults, the scale of the scores, and each mistake named."""

import json
from pathlib import Path
from typing import Any

import pytest

from datong.errors import ConfigError
from datong.importer import checkpoint, registry
from datong.importer.config import Config
from datong.importer.models.decoder import Decoder, Latent

GOLDENS = Path(__file__).parents[3] / "data" / "goldens"
SMALL = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4,
         "vocab_size": 100}  # fmt: skip
LATENT = {"q_lora_rank": 32, "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 24}


def golden(name: str) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((GOLDENS / name / "config.json").read_text())
    return values


def read(model_type: str, **values: Any) -> Decoder:
    config = Config({"model_type": model_type, **SMALL, **values}, model_type)
    decoder = registry.FAMILIES[model_type](config)
    config.finish()
    return decoder


@pytest.mark.parametrize("name", ["deepseek_v3", "glm4_moe_lite"])
def test_latent_goldens_are_accounted_for(name: str) -> None:
    weights = checkpoint.read_weights(GOLDENS / name)
    built = registry.build_model(golden(name), weights)
    assert weights.taken == set(weights.weights) and not weights.ignored
    assert [(c.kv_heads, c.key_dim, c.value_dim) for c in built.caches] == [(1, 32 + 8, 32)] * 3
    assert {c.kind for c in built.caches} == {"latent"}


def test_an_indexer_beside_the_latent() -> None:
    weights = checkpoint.read_weights(GOLDENS / "deepseek_v32")
    built = registry.build_model(golden("deepseek_v32"), weights)
    assert weights.taken == set(weights.weights) and not weights.ignored
    found = {(c.kind, c.kv_heads, c.key_dim, c.value_dim) for c in built.caches}
    assert found == {("latent", 1, 32 + 8, 32), ("index", 1, 16, 0)} and len(built.caches) == 2 * 3


@pytest.mark.parametrize(("family", "sizes"), [("deepseek_v3", (1536, 512, 128, 64, 128)),
                                               ("glm4_moe_lite", (768, 512, 192, 64, 256))])  # fmt: skip
def test_latent_defaults(family: str, sizes: tuple[int, ...]) -> None:
    """Source: transformers 5.23 DeepseekV3Config, Glm4MoeLiteConfig."""
    decoder = read(family, num_key_value_heads=4)
    assert decoder.latent == Latent(*sizes)
    assert [layer.experts is None for layer in decoder.layers] == (
        [True, True, True, False] if family == "deepseek_v3" else [True, False, False, False]
    )
    experts = decoder.layers[3].experts
    assert experts is not None
    want = (256, 8, 8, 4, 2.5, 2048) if family == "deepseek_v3" else (64, 4, 1, 1, 1.8, 1536)
    assert (experts.count, experts.top_k, experts.groups, experts.top_groups, experts.scale, experts.inner) == want


@pytest.mark.parametrize(("all_dim", "factor"), [(1.0, 1.8739), (0, 1.0), (0.5, 1.4029)])
def test_mscale_of_all_dimensions_scales_the_scores(all_dim: float, factor: float) -> None:
    """(0.1 m ln 40 + 1)^2 by hand; 0 counts as absent."""
    yarn = {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096, "mscale": 1.0,
            "mscale_all_dim": all_dim}  # fmt: skip
    decoder = read("deepseek_v3", rope_scaling=yarn, **LATENT)
    assert decoder.attn_scale == pytest.approx(24**-0.5 * factor, rel=1e-4)
    assert read("deepseek_v3", **LATENT).attn_scale == pytest.approx(24**-0.5)


def test_latent_queries_without_a_narrow_vector() -> None:
    decoder = read("deepseek_v3", **LATENT | {"q_lora_rank": None})
    assert decoder.latent is not None and decoder.latent.q_rank == 0


@pytest.mark.parametrize(
    ("family", "changes", "text"),
    [
        ("deepseek_v3", {"qk_rope_head_dim": 7}, "`qk_rope_head_dim` should be even"),
        ("deepseek_v3", {"qk_head_dim": 25}, "`qk_head_dim` should be 24"),
        ("deepseek_v3", {"num_key_value_heads": 2}, "`num_key_value_heads` should be 4"),
        ("deepseek_v3", {"moe_layer_freq": 2}, "`moe_layer_freq` should be 1"),
        ("deepseek_v3", {"num_widgets": 8}, "`num_widgets` is not known for model_type"),
        ("glm4_moe_lite", {"mlp_layer_types": ["sparse", "dense", "sparse", "sparse"]}, "`mlp_layer_types` should be"),
        ("glm4_moe_lite", {"mlp_layer_types": ["dense", "sparse"]}, "`mlp_layer_types` should be"),
        ("glm4_moe_lite", {"mlp_layer_types": ["dense"] * 4, "first_k_dense_replace": 1}, "begins with 4 dense"),
    ],
)
def test_wrong_latent_configs_are_named(family: str, changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        read(family, **{"num_key_value_heads": 4} | LATENT | changes)
