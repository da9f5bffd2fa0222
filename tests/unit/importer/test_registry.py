"""Families: every key and tensor of the goldens is accounted for, and each mistake is named."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datong.errors import CheckpointError, ConfigError, DatongError, UnknownModel
from datong.importer import checkpoint, registry
from datong.importer.config import Config
from datong.importer.models.decoder import Decoder
from datong.importer.models.towers import TOWERS

GOLDENS = Path(__file__).parents[2] / "data" / "goldens"
SHARED = {"__init__", "decoder", "latent", "layers", "mixers", "recurrent", "sparse", "speculation"}  # no families
NAMES = ["llama3", "llama3_sharded", "smollm2", "qwen2", "qwen3", "internlm2", "internlm3", "internlm3_ntk"]
SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "vocab_size": 100,
}


def golden(name: str, **changes: Any) -> dict[str, Any]:
    values = json.loads((GOLDENS / name / "config.json").read_text()) | changes
    return {k: v for k, v in values.items() if v is not ...}


def read(model_type: str, **values: Any) -> Decoder:
    config = Config({"model_type": model_type, **SMALL, **values}, model_type)
    decoder = registry.FAMILIES[model_type](config)
    config.finish()
    return decoder


@pytest.mark.parametrize("name", NAMES)
def test_goldens_are_accounted_for(name: str) -> None:
    weights = checkpoint.read_weights(GOLDENS / name)
    built = registry.build_model(golden(name), weights)
    assert weights.taken == set(weights.weights) and not weights.ignored
    assert built.vocab_size == 128 and len(built.caches) == 2
    assert built.context_length == (16 if name == "internlm3_ntk" else 256)
    assert "architectures" in built.ignored_keys


def windows(decoder: Decoder) -> tuple[int, ...]:
    return tuple(layer.window for layer in decoder.layers)


def test_every_family_file_is_registered() -> None:
    folder = Path(registry.__file__).parent / "models"
    files = {p.stem for p in folder.glob("*.py")} - SHARED
    assert files == {reader.__module__.rpartition(".")[2] for reader in registry.FAMILIES.values()}


@pytest.mark.parametrize("model_type", [None, "gpt2", 3, ["llama"]])
def test_unknown_model(model_type: Any) -> None:
    with pytest.raises(UnknownModel, match=r"model_type.* is (not known|missing)") as error:
        registry.build_model({"model_type": model_type}, checkpoint.read_weights(GOLDENS / "llama3"))
    assert f"known: {', '.join(registry.FAMILIES)}" == error.value.hint


PUBLISHED = {
    "SmolLM2-135M": ("llama", {
        "attention_bias": False, "attention_dropout": 0.0, "hidden_act": "silu", "hidden_size": 576,
        "initializer_range": 0.041666666666666664, "intermediate_size": 1536, "is_llama_config": True,
        "max_position_embeddings": 8192, "mlp_bias": False, "num_attention_heads": 9, "num_hidden_layers": 30,
        "num_key_value_heads": 3, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_interleaved": False,
        "rope_scaling": None, "rope_theta": 100000, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
        "transformers_version": "4.42.3", "use_cache": True, "vocab_size": 49152, "transformers.js_config": {},
    }),
    "InternLM2-7B, every key of the base class written out": ("internlm2", {
        "_name_or_path": "", "add_cross_attention": False, "attn_implementation": "eager", "auto_map": {},
        "bad_words_ids": None, "begin_suppress_tokens": None, "bias": False, "chunk_size_feed_forward": 0,
        "cross_attention_hidden_size": None, "decoder_start_token_id": None, "diversity_penalty": 0.0,
        "do_sample": False, "early_stopping": False, "encoder_no_repeat_ngram_size": 0,
        "exponential_decay_length_penalty": None, "finetuning_task": None, "forced_bos_token_id": None,
        "forced_eos_token_id": None, "hidden_act": "silu", "hidden_size": 4096, "id2label": {"0": "LABEL_0"},
        "initializer_range": 0.02, "intermediate_size": 14336, "is_decoder": False, "is_encoder_decoder": False,
        "label2id": {"LABEL_0": 0}, "length_penalty": 1.0, "max_length": 20, "max_position_embeddings": 32768,
        "min_length": 0, "no_repeat_ngram_size": 0, "num_attention_heads": 32, "num_beam_groups": 1, "num_beams": 1,
        "num_hidden_layers": 32, "num_key_value_heads": 8, "num_return_sequences": 1, "output_attentions": False,
        "output_hidden_states": False, "output_scores": False, "pad_token_id": 2, "prefix": None, "pretraining_tp": 1,
        "problem_type": None, "pruned_heads": {}, "remove_invalid_values": False, "repetition_penalty": 1.0,
        "return_dict": True, "return_dict_in_generate": False, "rms_norm_eps": 1e-05,
        "rope_scaling": {"factor": 2.0, "type": "dynamic"}, "rope_theta": 1000000, "sep_token_id": None,
        "suppress_tokens": None, "task_specific_params": None, "temperature": 1.0, "tf_legacy_loss": False,
        "tie_encoder_decoder": False, "tie_word_embeddings": False, "tokenizer_class": None, "top_k": 50, "top_p": 1.0,
        "torch_dtype": "bfloat16", "torchscript": False, "transformers_version": "4.41.0", "typical_p": 1.0,
        "use_bfloat16": False, "use_cache": True, "vocab_size": 92544,
    }),
    "InternLM3-8B": ("internlm3", {
        "auto_map": {}, "bias": False, "head_dim": 128, "hidden_act": "silu", "hidden_size": 4096,
        "initializer_range": 0.02, "intermediate_size": 10240, "max_position_embeddings": 32768,
        "num_attention_heads": 32, "num_hidden_layers": 48, "num_key_value_heads": 2, "qkv_bias": False,
        "rms_norm_eps": 1e-05, "rope_scaling": {"factor": 6.0, "rope_type": "dynamic"}, "rope_theta": 50000000,
        "tie_word_embeddings": False, "torch_dtype": "bfloat16", "use_cache": True, "vocab_size": 128512,
    }),
    "Qwen2.5, as distilled by DeepSeek": ("qwen2", {
        "attention_dropout": 0.0, "hidden_act": "silu", "hidden_size": 1536, "initializer_range": 0.02,
        "intermediate_size": 8960, "max_position_embeddings": 131072, "max_window_layers": 21,
        "num_attention_heads": 12, "num_hidden_layers": 28, "num_key_value_heads": 2, "rms_norm_eps": 1e-06,
        "rope_theta": 10000, "sliding_window": 4096, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
        "use_cache": True, "use_mrope": False, "use_sliding_window": False, "vocab_size": 151936,
    }),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_are_read(name: str) -> None:
    """The keys that real config.json files have, as quoted in public repositories."""
    family, values = PUBLISHED[name]
    decoder = read(family, **values)
    assert decoder.ropes[0].context_length == values["max_position_embeddings"] and not any(windows(decoder))


OWN_KEYS = {
    "deepseek_v3",
    "deepseek_v32",
    "minimax_m3_vl",
    "glm4_moe_lite",
    "neo_chat",
    "step3p5",
    "step3p7",
}  # their own tests
OWN_KEYS |= {"minimax_m1", "minimax_text_01", "qwen3_5", "qwen3_5_moe", "gemma3_text", *TOWERS}


@pytest.mark.parametrize("family", sorted(set(registry.FAMILIES) - OWN_KEYS))
@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"hidden_act": "gelu"}, "`hidden_act` should be `silu`"),
        ({"hidden_size": ...}, "`hidden_size` is missing"),
        ({"vocab_size": 0}, "`vocab_size` should be a whole number"),
        ({"num_key_value_heads": 3}, "should be a multiple of `num_key_value_heads` 3"),
        ({"head_dim": 15, "num_key_value_heads": 2}, "size of a head should be even"),
        ({"head_dim": 2**30, "num_key_value_heads": 2}, "at most 65536"),
        ({"head_dim": None, "hidden_size": 2**31 - 4, "num_key_value_heads": 2}, "at most 65536"),
        ({"num_hidden_layers": 2**31 - 1}, "`num_hidden_layers` should be a whole number from 1 to 10000"),
        ({"head_dim": None, "hidden_size": 66, "num_key_value_heads": 2}, "`hidden_size` 66 should be a multiple"),
        ({"rms_norm_eps": 0}, "`rms_norm_eps` should be a number"),
        ({"tie_word_embeddings": "yes"}, "`tie_word_embeddings` should be true or false"),
        ({"num_widgets": 8}, "`num_widgets` is not known for model_type"),
        ({"quantization_config": {"quant_method": "fp8"}}, "format `fp8` are not supported yet"),
    ],
)
def test_wrong_configs_are_named(family: str, changes: dict[str, Any], text: str) -> None:
    values = {"num_key_value_heads": 2} | changes
    values = {k: v for k, v in (SMALL | values).items() if v is not ...}
    config = Config({"model_type": family, **values}, family)
    with pytest.raises(ConfigError, match=text):
        registry.FAMILIES[family](config)
        config.finish()


def test_family_defaults() -> None:
    assert read("llama").layers[0].kv_heads == 4 and read("llama").layers[0].head_dim == 16
    assert read("mistral", num_attention_heads=8).layers[0].kv_heads == 8
    assert windows(read("mistral", num_attention_heads=8)) == (4096,) * 4
    assert windows(read("mistral", num_key_value_heads=None, sliding_window=None)) == (0,) * 4
    assert read("mistral", num_key_value_heads=None, sliding_window=None).layers[0].kv_heads == 4
    assert read("qwen3", num_attention_heads=32).layers[0].head_dim == 128
    assert read("qwen3", num_key_value_heads=2, head_dim=None).layers[0].head_dim == 16
    assert read("internlm3", head_dim=16).layers[0].kv_heads == 2 and read("internlm3").layers[0].head_dim == 128
    assert read("internlm2").qkv_bias and not read("internlm2", bias=False).qkv_bias
    assert read("qwen2", num_key_value_heads=2).qkv_bias and not read("qwen2", num_key_value_heads=2).o_bias


def test_biases() -> None:
    llama = read("llama", attention_bias=True)
    assert (llama.qkv_bias, llama.o_bias, llama.mlp_bias) == (True, True, False)
    assert read("llama", mlp_bias=True).mlp_bias
    three = read("internlm3", qkv_bias=True, bias=False)
    assert (three.qkv_bias, three.o_bias, three.mlp_bias) == (True, False, False)
    same = read("internlm3", attention_bias=True, mlp_bias=True)
    assert (same.qkv_bias, same.o_bias, same.mlp_bias) == (True, True, True)
    with pytest.raises(ConfigError, match="`bias` and `mlp_bias` mean the same"):
        read("internlm3", bias=True, mlp_bias=False)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, (0, 0, 0, 0)),
        ({"use_sliding_window": False, "sliding_window": 8, "max_window_layers": 0}, (0, 0, 0, 0)),
        ({"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 3}, (0, 0, 0, 8)),
        ({"use_sliding_window": True, "max_window_layers": 2}, (0, 0, 4096, 4096)),
        ({"use_sliding_window": True, "sliding_window": None, "max_window_layers": 2}, (0, 0, 0, 0)),
        ({"use_sliding_window": True, "sliding_window": 8}, (0, 0, 0, 0)),
        (
            {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 4,
             "layer_types": ["sliding_attention", "full_attention", "full_attention", "sliding_attention"]},
            (8, 0, 0, 8),
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_windows(family: str, values: dict[str, Any], expected: tuple[int, ...]) -> None:
    assert windows(read(family, num_key_value_heads=2, **values)) == expected


@pytest.mark.parametrize(
    ("types", "text"),
    [
        (["full_attention"], "should have 4 entries"),
        (["linear_attention"] * 4, "should have 4 entries"),
        ("full_attention", "should have 4 entries"),
        ([["full_attention"]] * 4, "should have 4 entries"),
        (["sliding_attention"] * 4, "no sliding window is in use"),
    ],
)
def test_wrong_layer_types(types: Any, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        read("qwen2", num_key_value_heads=2, layer_types=types)


def test_missing_misshapen_and_left_over_tensors_are_named() -> None:
    for changes, text in (
        ({"num_hidden_layers": 3}, r"tensor `model.layers.2.input_layernorm.weight` \[64\] is not in the checkpoint"),
        ({"intermediate_size": 96}, r"should have shape \[96, 64\], the checkpoint has \[128, 64\]"),
        ({"num_hidden_layers": 1}, r"9 tensors are not used by model_type `llama`: `model.layers.1"),
        ({"attention_bias": True}, r"tensor `model.layers.0.self_attn.q_proj.bias` \[64\] is not in the checkpoint"),
    ):
        with pytest.raises(CheckpointError, match=text):
            registry.build_model(golden("llama3", **changes), checkpoint.read_weights(GOLDENS / "llama3"))


def test_tied_models_leave_an_extra_head_with_a_reason() -> None:
    weights = checkpoint.read_weights(GOLDENS / "llama3")
    registry.build_model(golden("llama3", tie_word_embeddings=True), weights)
    assert set(weights.ignored) == {"lm_head.weight"} and "tied" in weights.ignored["lm_head.weight"]


def test_old_rotary_tables_are_left_with_a_reason() -> None:
    weights = checkpoint.read_weights(GOLDENS / "llama3")
    tables = ["model.layers.0.self_attn.rotary_emb.inv_freq", "model.layers.0.attention.rope.inv_freq"]
    weights.weights |= dict.fromkeys(tables, weights.weights["model.norm.weight"])
    registry.build_model(golden("llama3"), weights)
    assert sorted(weights.ignored) == sorted(tables)


KEYS = [*golden("llama3"), *golden("qwen2"), *golden("internlm2"), "rope_scaling", "sliding_window", "head_dim", "bias"]
ROPE = st.dictionaries(
    st.sampled_from(["type", "rope_type", "factor", "rope_theta", "beta_fast", "truncate"]),
    st.sampled_from(["yarn", "llama3", "linear"]) | st.floats() | st.integers() | st.none(),
    max_size=4,
)
LIST = st.lists(st.integers(0, 3) | st.just("sliding_attention"), max_size=3)
JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 2**65), st.floats(), st.text(max_size=6), st.just("silu"), LIST, ROPE
)


@settings(deadline=None, derandomize=True)
@given(st.sampled_from(NAMES), st.dictionaries(st.sampled_from(sorted(set(KEYS))), JUNK, min_size=1, max_size=4))
def test_no_config_breaks_anything_but_the_import(name: str, changes: dict[str, Any]) -> None:
    weights = checkpoint.read_weights(GOLDENS / name)
    try:
        registry.build_model(golden(name) | changes, weights)
    except DatongError as error:
        assert "\n" not in error.message and len(error.message) < 400


@pytest.mark.parametrize(("name", "changes", "text"), [
    ("qwen3_moe", {"num_experts_per_tok": 99}, "a token cannot use 99 experts, there are 8"),
    ("deepseek_v3", {"num_experts_per_tok": 5}, "cannot use 5 experts, there are 1 of 2 groups of 4"),
    ("deepseek_v3", {"n_group": 3}, "8 experts cannot be 3 groups, of which a token uses 1"),
    ("deepseek_v3", {"topk_group": 3}, "8 experts cannot be 2 groups, of which a token uses 3"),
    ("gpt_oss", {"num_experts_per_tok": 9}, "cannot use 9 experts, there are 8"),
])  # fmt: skip
def test_experts_that_cannot_be(name: str, changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=f"contradicts itself: .*{text}"):
        registry.build_model(golden(name, **changes), checkpoint.read_weights(GOLDENS / name))


@pytest.mark.parametrize(("name", "lost"), [
    ("qwen3_moe", "model.layers.1.mlp.experts.3.up_proj.weight"), ("minimax_m3_vl", "language_model.model.norm.weight"),
    ("deepseek_v32", "model.layers.0.self_attn.indexer.k_norm.bias"),
])  # fmt: skip
def test_a_missing_tensor_is_named(name: str, lost: str) -> None:
    weights = checkpoint.read_weights(GOLDENS / name)
    del weights.weights[lost]
    with pytest.raises(CheckpointError, match=f"`{lost}`"):
        registry.build_model(golden(name), weights)
