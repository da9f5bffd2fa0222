"""Keys become the config of the hub; nothing that changes the computation passes unseen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from datong.errors import CheckpointError, ConfigError, DatongError, UnknownModel
from datong.importer.gguf import metadata
from datong.importer.gguf.keys import Keys
from datong.importer.gguf.reader import read_gguf

Save = Callable[[bytes], Path]
FACTORS = [1.0, 1.0, 1.5, 8.0]


@pytest.fixture
def config(raw: SimpleNamespace, save: Save) -> Callable[..., tuple[dict[str, Any], dict[str, str]]]:
    """Changes to the tiny model -> its config and the ignored keys."""

    def make(
        arch: str = "llama", drop: tuple[str, ...] = (), extra: dict[str, Any] | None = None, **changes: Any
    ) -> Any:
        keys, arrays = raw.model(arch, **changes)
        arrays = {n: a for n, a in arrays.items() if n not in drop} | (extra or {})
        file = read_gguf(save(raw.with_arrays(keys, arrays)))
        read = Keys(file.values, "m.gguf")
        metadata.check_single(read)
        return metadata.build_config(file, read), metadata.ignored_keys(read)

    return make


def test_llama(config: Callable[..., Any]) -> None:
    found, ignored = config()
    assert found == {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": 16,
        "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
        "head_dim": 8, "rms_norm_eps": 1e-05, "max_position_embeddings": 64, "rope_theta": 10000.0, "vocab_size": 265,
        "tie_word_embeddings": False, "attention_bias": False, "mlp_bias": False, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    assert ignored["general.license"] == "describes the file or the model's origin"


@pytest.mark.parametrize(("arch", "kind"), [("internlm2", "llama"), ("qwen2", "qwen2"), ("qwen3", "qwen3")])
def test_architectures(arch: str, kind: str, config: Callable[..., Any]) -> None:
    found, _ = config(arch)
    assert found["model_type"] == kind and ("attention_bias" in found) == (kind == "llama")


def test_tied_where_there_is_no_head(config: Callable[..., Any]) -> None:
    assert config(drop=("output.weight",))[0]["tie_word_embeddings"] is True


def test_window_is_mistral(config: Callable[..., Any]) -> None:
    found, _ = config(llama__attention__sliding_window=32)
    assert found["model_type"] == "mistral" and found["sliding_window"] == 32
    assert config(llama__attention__sliding_window=0)[0]["model_type"] == "llama"
    with pytest.raises(ConfigError, match=r"key `qwen2.attention.sliding_window` = 32 is not known"):
        config("qwen2", qwen2__attention__sliding_window=32)


def test_biases_show_in_the_tensors(config: Callable[..., Any]) -> None:
    qkv = {"blk.0.attn_q.bias": np.zeros(16)}
    out, mlp = {"blk.0.attn_output.bias": np.zeros(16)}, {"blk.0.ffn_down.bias": np.zeros(16)}
    found, _ = config(extra=qkv)
    assert found["model_type"] == "internlm3" and (found["qkv_bias"], found["bias"]) == (True, False)
    found, _ = config(extra=qkv | out)
    assert found["model_type"] == "llama" and (found["attention_bias"], found["mlp_bias"]) == (True, False)
    found, _ = config(extra=qkv | out | mlp)
    assert (found["attention_bias"], found["mlp_bias"]) == (True, True)


@pytest.mark.parametrize(
    ("changes", "scaling"),
    [
        ({"type": "none"}, None),
        ({"type": "none", "factor": 1.0}, None),
        ({"type": "linear", "factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
        ({"factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
        (
            {
                "type": "yarn",
                "factor": 4.0,
                "original_context_length": 16,
                "yarn_beta_fast": 16.0,
                "yarn_attn_factor": 1.5,
            },
            {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 16,
                "beta_fast": 16.0,
                "attention_factor": 1.5,
            },
        ),
    ],
)
def test_rope_scaling(changes: dict[str, Any], scaling: object, config: Callable[..., Any]) -> None:
    found, _ = config(**{f"llama__rope__scaling__{k}": v for k, v in changes.items()})
    assert found.get("rope_scaling") == scaling


def test_old_linear_scaling(config: Callable[..., Any]) -> None:
    assert config(llama__rope__scale_linear=2.0)[0]["rope_scaling"] == {"rope_type": "linear", "factor": 2.0}


def test_rope_factors_are_kept_to_the_bit(config: Callable[..., Any]) -> None:
    factors = np.array([1.0, 1.1, 3.3333333, 8.0], np.float32)
    scaling = config(extra={"rope_freqs.weight": factors})[0]["rope_scaling"]
    assert scaling["rope_type"] == "longrope" and scaling["attention_factor"] == 1.0
    assert np.array_equal(np.array(scaling["short_factor"], np.float32), factors)
    assert scaling["long_factor"] == scaling["short_factor"]


def test_per_layer_numbers_must_agree(config: Callable[..., Any]) -> None:
    assert config(llama__attention__head_count_kv=[1, 1])[0]["num_key_value_heads"] == 1
    with pytest.raises(ConfigError, match=r"key `llama.feed_forward_length` should be one number for all 2 layers"):
        config(llama__feed_forward_length=[32, 48])


def test_ignored_keys_have_reasons(config: Callable[..., Any]) -> None:
    _, ignored = config(
        llama__expert_count=0, llama__rope__scaling__finetuned=True, quantize__imatrix__file="x", someone__note="y",
        llama__attention__causal=True,
    )  # fmt: skip
    assert ignored["llama.expert_count"] == "no experts"
    assert ignored["llama.attention.causal"] == "attention is causal"
    assert ignored["quantize.imatrix.file"] == "says how the file was quantised"
    assert ignored["someone.note"] == "not a key of the model"


BAD: list[tuple[type[DatongError], dict[str, Any], str]] = [
    (
        UnknownModel,
        {"general__architecture": "mamba"},
        "GGUF architecture `mamba` has no builder\nhint: known arch.*: int",
    ),
    (UnknownModel, {"general__type": "adapter"}, "`general.type` should be `model`, it is `adapter`"),
    (
        ConfigError,
        {"general__architecture": "a\nb"},
        r"key `general.architecture` should be a short name, it is 'a\\nb'",
    ),
    (ConfigError, {"general__architecture": None}, r"key `general.architecture` \(a string\) is missing"),
    (ConfigError, {"llama__block_count": None}, r"key `llama.block_count` \(a whole number\) is missing"),
    (ConfigError, {"llama__block_count": "2"}, "key `llama.block_count` should be a whole number, it is '2'"),
    (ConfigError, {"llama__block_count": True}, "key `llama.block_count` should be a whole number, it is True"),
    (ConfigError, {"llama__block_count": 0}, "key `llama.block_count` should be at least 1, it is 0"),
    (ConfigError, {"llama__rope__freq_base": float("nan")}, "key `llama.rope.freq_base` should be finite, it is nan"),
    (
        ConfigError,
        {"llama__attention__key_length": 4, "llama__attention__value_length": 8},
        "`llama.attention.value_length` should be 4",
    ),
    (
        ConfigError,
        {"llama__rope__dimension_count": 4},
        "`llama.rope.dimension_count` should be 8, the head dim, it is 4",
    ),
    (ConfigError, {"llama__attention__head_count": 3}, "16 channels cannot be shared by 3 heads"),
    (ConfigError, {"llama__vocab_size": 7}, "`llama.vocab_size` is 7, `token_embd.weight` has 265 rows"),
    (
        ConfigError,
        {"llama__expert_count": 8},
        "key `llama.expert_count` = 8 is not known for GGUF architecture `llama`",
    ),
    (ConfigError, {"llama__logit_scale": 0.5}, "key `llama.logit_scale` = 0.5 is not known"),
    (
        ConfigError,
        {"llama__new__thing": [1, 2]},
        r"key `llama.new.thing` = an array of 2 int32 \(1, 2 …\) is not known",
    ),
    (
        ConfigError,
        {"llama__rope__scaling__type": "longrope", "llama__rope__scaling__factor": 2.0},
        "type `longrope` should be none, linear",
    ),
    (
        ConfigError,
        {"llama__rope__scaling__type": "yarn", "llama__rope__scaling__factor": 2.0},
        "original_context_length` .* is missing",
    ),
    (
        ConfigError,
        {"llama__rope__scaling__type": "linear"},
        "key `llama.rope.scaling.factor` should be above 0, it is 0",
    ),
    (
        CheckpointError,
        {"split__count": 3, "split__no": 1},
        "this is part 2 of 3 of a split GGUF file.*\nhint: join the parts",
    ),
]


@pytest.mark.parametrize(("error", "changes", "message"), BAD, ids=[next(iter(row[1])) for row in BAD])
def test_wrong_keys_are_named(
    error: type[DatongError], changes: dict[str, Any], message: str, config: Callable[..., Any]
) -> None:
    with pytest.raises(error, match=message):
        config(**changes)


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        ([1.0] * 3, r"`rope_freqs.weight` should be F32 \[4\], it is F32 \[3\]"),
        ([1.0, 0.0, 1.0, 1.0], "finite numbers above 0"),
    ],
)
def test_wrong_rope_factors(factors: list[float], message: str, config: Callable[..., Any]) -> None:
    with pytest.raises(CheckpointError, match=message):
        config(extra={"rope_freqs.weight": np.array(factors)})
    with pytest.raises(ConfigError, match=r"rope scaling `linear` together with tensor `rope_freqs.weight`"):
        config(extra={"rope_freqs.weight": np.array(FACTORS)}, llama__rope__scaling__type="linear")


def test_no_embedding(config: Callable[..., Any]) -> None:
    with pytest.raises(CheckpointError, match=r"tensor `token_embd.weight` \[vocab, hidden\] is not in the file"):
        config(drop=("token_embd.weight",))
