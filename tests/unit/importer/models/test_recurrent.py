"""Families with a state: tensors, keys and caches, defaults, the decay of each layer, and each mistake named."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datong.errors import CheckpointError, ConfigError
from datong.importer import checkpoint, registry
from datong.importer.config import Config
from datong.importer.models import minimax_text01
from datong.importer.models.decoder import Decoder
from datong.importer.models.mixers import Delta, Lightning, Residual
from datong.spec.program import CacheSpec

GOLDENS = Path(__file__).parents[3] / "data" / "goldens"
DELTA = ["qwen3_next", "qwen3_5_text", "qwen3_5_moe_text", "qwen3_5_moe"]
SMALL = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 8, "num_attention_heads": 4,
         "vocab_size": 100}  # fmt: skip


def golden(name: str, **changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((GOLDENS / name / "config.json").read_text())
    return {k: v for k, v in (values | changes).items() if v is not ...}


def read(model_type: str, **values: Any) -> Decoder:
    config = Config({"model_type": model_type, **SMALL, **values}, model_type)
    decoder = registry.FAMILIES[model_type](config)
    config.finish()
    return decoder


def minimax(**changes: Any) -> Decoder:
    values = golden("minimax_text01", **changes)
    config = Config(values, values["model_type"])
    decoder = registry.FAMILIES[values["model_type"]](config)
    config.finish()
    return decoder


@pytest.mark.parametrize("name", DELTA)
def test_delta_goldens_are_accounted_for(name: str) -> None:
    weights = checkpoint.read_weights(GOLDENS / name)
    built = registry.build_model(golden(name), weights)
    assert weights.taken == set(weights.weights) and not weights.ignored
    states = [CacheSpec(i, *spec) for i in range(3) for spec in (("conv", 1, 128, 3), ("recurrent", 4, 16, 16))]
    assert built.caches == (*states, CacheSpec(3, "full", 2, 32, 32))


def test_the_lightning_golden_is_accounted_for() -> None:
    weights = checkpoint.read_weights(GOLDENS / "minimax_text01")
    built = registry.build_model(golden("minimax_text01"), weights)
    assert weights.taken == set(weights.weights) and not weights.ignored
    assert built.caches == (*(CacheSpec(i, "recurrent", 4, 16, 16) for i in range(3)), CacheSpec(3, "full", 2, 16, 16))


@pytest.mark.parametrize(("family", "counts"), [("qwen3_next", (512, 10, 5632)), ("qwen3_5_moe_text", (256, 8, 1)),
                                                ("qwen3_5_text", (0, 0, 12288))])  # fmt: skip
def test_delta_defaults(family: str, counts: tuple[int, int, int]) -> None:
    """Source: transformers 5.23 Qwen3NextConfig, Qwen3_5TextConfig, Qwen3_5MoeTextConfig."""
    decoder = read(family, intermediate_size=None, num_key_value_heads=2)
    assert [layer.mixer is None for layer in decoder.layers] == [False, False, False, True] * 2
    assert decoder.layers[0].mixer == Delta(16, 32, 128, 128, 4, family == "qwen3_next")
    assert (decoder.layers[0].head_dim, len(decoder.ropes[0].inv_freq), decoder.eps) == (256, 32, 1e-6)
    experts = decoder.layers[7].experts
    found = (0, 0) if experts is None else (experts.count, experts.top_k)
    assert (*found, decoder.layers[0].inner) == counts
    if experts is not None:
        assert (experts.inner, experts.shared_inner, experts.renorm) == (512, 512, True)


def test_layers_without_experts() -> None:
    decoder = read("qwen3_next", num_key_value_heads=2, mlp_only_layers=[1], decoder_sparse_step=2)
    assert [layer.experts is None for layer in decoder.layers] == [True, True] + [True, False] * 3
    assert [layer.mixer is None for layer in read("qwen3_5_text", full_attention_interval=2).layers] == [
        False,
        True,
    ] * 4


def test_the_hubs_spelling_reads_as_the_saved_one() -> None:
    hub, saved = (
        registry.FAMILIES[values["model_type"]](Config(values, values["model_type"]))
        for values in (golden("qwen3_5_moe"), golden("qwen3_5_moe_text"))
    )
    experts = hub.layers[0].experts
    assert experts is not None and (experts.gate, experts.up, experts.order) == (
        "mlp.experts.gate_up_proj",
        "",
        "halves",
    )
    assert experts.down == "mlp.experts.down_proj"
    assert [layer.mixer for layer in hub.layers] == [layer.mixer for layer in saved.layers]
    assert np.array_equal(hub.ropes[0].inv_freq, saved.ropes[0].inv_freq)


PUBLISHED = {
    "attention_bias": False, "attention_dropout": 0.0, "attn_output_gate": True, "dtype": "bfloat16",
    "eos_token_id": 248044, "full_attention_interval": 4, "head_dim": 256, "hidden_act": "silu", "hidden_size": 5120,
    "initializer_range": 0.02, "intermediate_size": 17408, "linear_conv_kernel_dim": 4, "linear_key_head_dim": 128,
    "linear_num_key_heads": 16, "linear_num_value_heads": 48, "linear_value_head_dim": 128,
    "mamba_ssm_dtype": "float32", "max_position_embeddings": 262144, "model_type": "qwen3_5_text",
    "mtp_num_hidden_layers": 1, "mtp_use_dedicated_embeddings": False, "num_attention_heads": 24,
    "num_hidden_layers": 64, "num_key_value_heads": 4, "output_gate_type": "swish", "partial_rotary_factor": 0.25,
    "rms_norm_eps": 1e-06,
    "rope_parameters": {"mrope_interleaved": True, "mrope_section": [11, 11, 10], "partial_rotary_factor": 0.25,
                        "rope_theta": 10000000, "rope_type": "default"},
    "use_cache": True, "vocab_size": 248320,
}  # fmt: skip


@pytest.mark.parametrize("tied", [None, False, True])
def test_a_published_config(tied: bool | None) -> None:
    """The keys of Qwen3.5-27B's config.json, as quoted in public repositories; who says that embeddings are tied."""
    values = {"architectures": ["Qwen3_5ForConditionalGeneration"], "model_type": "qwen3_5", "text_config": PUBLISHED,
              "image_token_id": 248056, "vision_config": {"depth": 27}, "transformers_version": "4.57.0"}  # fmt: skip
    if tied is not None:
        values["tie_word_embeddings"] = tied
    config = Config(values, "qwen3_5")
    decoder = registry.FAMILIES["qwen3_5"](config)
    config.finish()
    assert sum(layer.mixer is None for layer in decoder.layers) == 16 and decoder.tied is bool(tied)
    assert decoder.names.embed == "model.language_model.embed_tokens" and decoder.layers[0].inner == 17408
    assert {"vision_config", "mtp_num_hidden_layers"} <= config.ignored.keys()


def test_speculation_and_images_are_left_out() -> None:
    weights = checkpoint.read_weights(GOLDENS / "qwen3_5_moe")
    extra = ["mtp.fc.weight", "model.visual.patch_embed.proj.weight"]
    weights.weights |= dict.fromkeys(extra, weights.weights["lm_head.weight"])
    registry.build_model(golden("qwen3_5_moe"), weights)
    assert set(weights.ignored) == set(extra) and all(weights.ignored.values())


def test_tables_of_decay_are_left_out() -> None:
    weights = checkpoint.read_weights(GOLDENS / "minimax_text01")
    extra = [f"model.layers.0.self_attn.{n}" for n in ("slope_rate", "query_decay", "key_decay", "diagonal_decay")]
    weights.weights |= dict.fromkeys(extra, weights.weights["lm_head.weight"])
    registry.build_model(golden("minimax_text01"), weights)
    assert set(weights.ignored) == set(extra)


@pytest.mark.parametrize("name", ["linear_attn.A_log", "linear_attn.dt_bias", "linear_attn.conv1d.weight"])
def test_a_tensor_that_is_not_there_is_named(name: str) -> None:
    weights = checkpoint.read_weights(GOLDENS / "qwen3_next")
    del weights.weights[f"model.layers.1.{name}"]
    with pytest.raises(CheckpointError, match=f"`model.layers.1.{name}` .* is not in the checkpoint"):
        registry.build_model(golden("qwen3_next"), weights)


def test_lightning() -> None:
    """By hand: 2^(-8 (h + 1) / 4), and what is left of it in layer 1 of 4: 1 - 1/3."""
    decoder = minimax()
    mixers = [layer.mixer for layer in decoder.layers]
    assert isinstance(mixers[1], Lightning) and mixers[3] is None and mixers[1].norm_eps == 1e-6
    np.testing.assert_allclose(mixers[1].slopes, np.array([0.25, 0.0625, 1 / 64, 1 / 256]) * 2 / 3, rtol=1e-4)
    alpha = Residual(3.5565588200778455, 1.0)
    assert all(layer.attn_residual == layer.mlp_residual == alpha for layer in decoder.layers)
    assert len(decoder.ropes[0].inv_freq) == 4  # half of a head
    changed = minimax(layernorm_full_attention_alpha=2.0, layernorm_mlp_beta=0.5)
    assert [layer.attn_residual for layer in changed.layers] == [alpha] * 3 + [Residual(2.0, 1.0)]
    assert changed.layers[0].mlp_residual == Residual(alpha.alpha, 0.5)


def test_lightning_of_the_published_sizes() -> None:
    """64 heads, 80 layers: the first and the last head of layers 0 and 78."""
    first, last = (minimax_text01.slopes(64, layer, 80) for layer in (0, 78))
    assert first[0] == pytest.approx(2 ** (-1 / 8) * (1 + 1e-5)) and first[63] == pytest.approx(2**-8 * (1 + 1e-5))
    assert last[0] == pytest.approx(2 ** (-1 / 8) * (1 - 78 / 79.00001 + 1e-5))


def test_m1_is_the_same_model() -> None:
    assert minimax(model_type="minimax_m1", architectures=["MiniMaxM1ForCausalLM"]).layers == minimax().layers


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"attn_type_list": [0, 1]}, "`attn_type_list` should have 4 entries"),
        ({"attn_type_list": [0, 0, 0, 2]}, "each 0 or 1"),
        ({"attn_type_list": ...}, "`attn_type_list` is missing"),
        ({"postnorm": False}, "`postnorm` should be True"),
        ({"shared_intermediate_size": 64}, "`shared_intermediate_size` should be 0"),
        ({"rotary_dim": 7}, "should give an even part"),
        ({"layernorm_mlp_alpha": "big"}, "`layernorm_mlp_alpha` should be a number"),
        ({"num_widgets": 8}, "`num_widgets` is not known for model_type"),
        ({"hidden_size": ...}, "`hidden_size` is missing"),
        ({"rms_norm_eps": 0}, "`rms_norm_eps` should be a number"),
    ],
)
def test_wrong_lightning_configs_are_named(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        minimax(**changes)


@pytest.mark.parametrize("family", ["qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"])
@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"linear_num_value_heads": 5}, "`linear_num_value_heads` 5 should be a multiple of"),
        ({"linear_conv_kernel_dim": 1}, "`linear_conv_kernel_dim` should be a whole number from 2"),
        ({"layer_types": ["linear_attention"]}, "`layer_types` should have 8 entries"),
        ({"layer_types": ["sliding_attention"] * 8}, "each `linear_attention` or `full_attention`"),
        ({"partial_rotary_factor": 0.001}, "should give an even part"),
        ({"attn_output_gate": False}, "`attn_output_gate` should be True"),
        ({"mamba_ssm_dtype": "bfloat16"}, "`mamba_ssm_dtype` should be `float32`"),
        ({"output_gate_type": "sigmoid"}, "`output_gate_type` should be `silu` or `swish`"),
    ],
)
def test_wrong_delta_configs_are_named(family: str, changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        read(family, num_key_value_heads=2, **changes)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"text_config": ...}, "`text_config` is missing"),
        ({"text_config": 3}, "`text_config` should be an object"),
        ({"tie_word_embeddings": True}, "`tie_word_embeddings` should be False"),
        ({"num_widgets": 8}, "`num_widgets` is not known for model_type"),
        ({"quantization_config": {"quant_method": "fp8"}}, "format `fp8` are not supported yet"),
    ],
)
def test_wrong_nested_configs_are_named(changes: dict[str, Any], text: str) -> None:
    values = golden("qwen3_5_moe", **changes)
    config = Config(values, "qwen3_5_moe")
    with pytest.raises(ConfigError, match=text):
        registry.FAMILIES["qwen3_5_moe"](config)
        config.finish()
