"""GGUF metadata -> the config.json that the model would have on the hub.

Every key is used, or listed in `ignored` with a reason, or an error: a key that changes the computation and is
overlooked gives a model that answers nonsense politely.
Source: llama.cpp gguf-py/gguf/constants.py `Keys`; conversion/base.py `set_gguf_parameters` for what each one means.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from datong.errors import CheckpointError, ConfigError, UnknownModel
from datong.importer.gguf.keys import Keys, describe
from datong.importer.gguf.names import ROPE_FREQS
from datong.importer.gguf.reader import GgufFile


@dataclass(frozen=True)
class Architecture:
    """What a `general.architecture` is on the hub."""

    model_type: str
    cls: str
    permuted: bool  # see names.py


ARCHITECTURES = {
    "llama": Architecture("llama", "LlamaForCausalLM", permuted=True),
    "internlm2": Architecture("llama", "LlamaForCausalLM", permuted=True),
    "qwen2": Architecture("qwen2", "Qwen2ForCausalLM", permuted=False),
    "qwen3": Architecture("qwen3", "Qwen3ForCausalLM", permuted=False),
}

# `<architecture>.` + key -> (values with which it changes nothing, why). Any other value is an error.
NEUTRAL: dict[str, tuple[tuple[object, ...], str]] = {
    "expert_count": ((0,), "no experts"),
    "expert_used_count": ((0,), "no experts"),
    "leading_dense_block_count": ((0,), "no experts"),
    "nextn_predict_layers": ((0,), "no layers for multi-token prediction"),
    "attention.causal": ((True,), "attention is causal"),
    "attention.sliding_window": ((0,), "no window"),
    "attention.clamp_kqv": ((0.0,), "no clamping"),
    "attention.max_alibi_bias": ((0.0,), "no position bias"),
    "attn_logit_softcapping": ((0.0,), "no cap"),
    "final_logit_softcapping": ((0.0,), "no cap"),
    "logit_scale": ((0.0, 1.0), "logits are not scaled"),
    "use_parallel_residual": ((False,), "attention, then MLP"),
    "tensor_data_layout": (("Meta AI original pth", "Meta AI original pth with QKV permuted"), "the usual row order"),
    "rope.scaling.attn_factor": ((1.0,), "cos and sin are not scaled"),
    "rope.scaling.yarn_ext_factor": ((1.0,), "yarn as published"),
    "rope.scaling.yarn_log_multiplier": ((0.0,), "yarn as published"),
}
# `<architecture>.` + key -> why its value does not matter
UNUSED = {
    "attention.layer_norm_epsilon": "the model has no LayerNorm",
    "rope.scaling.finetuned": "says how the model was trained",
    "rope.scaling.original_context_length": "needed by yarn only",
    "pooling_type": "for embedding models",
}
# prefix -> why keys under it do not matter
UNUSED_PREFIXES = {
    "general.": "describes the file or the model's origin",
    "quantize.": "says how the file was quantised",
    "imatrix.": "says how the file was quantised",
    "tokenizer.": "not needed to rebuild the tokenizer",
}


def check_single(keys: Keys) -> None:
    """Raises CheckpointError for one part of a split model."""
    count = keys.integer("split.count", 0)
    if count > 1:
        part = keys.integer("split.no", 0) + 1
        raise CheckpointError(
            keys.where,
            f"this is part {part} of {count} of a split GGUF file, which Datong does not read",
            "join the parts with `llama-gguf-split --merge FIRST_PART WHOLE_FILE`",
        )


def architecture(keys: Keys) -> Architecture:
    """Raises UnknownModel for an architecture without a builder."""
    name = keys.word("general.architecture")
    kind = keys.word("general.type", "model")
    if kind != "model":
        raise UnknownModel(keys.where, f"`general.type` should be `model`, it is `{kind}`")
    if name not in ARCHITECTURES:
        raise UnknownModel(
            keys.where,
            f"GGUF architecture `{name}` has no builder",
            f"known architectures: {', '.join(sorted(ARCHITECTURES))}",
        )
    return ARCHITECTURES[name]


def build_config(file: GgufFile, keys: Keys) -> dict[str, Any]:
    """The config.json of the model. Raises ConfigError for keys that are missing, wrong or contradict the tensors."""
    arch = architecture(keys)
    name = keys.word("general.architecture")
    layers = keys.integer(f"{name}.block_count", least=1)
    hidden = keys.integer(f"{name}.embedding_length", least=1)
    heads = keys.same(f"{name}.attention.head_count", layers)
    config: dict[str, Any] = {
        "architectures": [arch.cls],
        "model_type": arch.model_type,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": keys.same(f"{name}.feed_forward_length", layers),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": keys.same(f"{name}.attention.head_count_kv", layers, default=heads),
        "head_dim": _head_dim(keys, name, hidden, heads),
        "rms_norm_eps": keys.number(f"{name}.attention.layer_norm_rms_epsilon"),
        "max_position_embeddings": keys.integer(f"{name}.context_length", least=1),
        "rope_theta": keys.number(f"{name}.rope.freq_base", 10000.0),
        "vocab_size": _vocab_size(file, keys, name),
        "tie_word_embeddings": "output.weight" not in file.tensors,
    }
    scaling = _rope_scaling(file, keys, name, config)
    if scaling is not None:
        config["rope_scaling"] = scaling
    _window(keys, name, arch, config)
    _biases(file, arch, config)
    for ours, key in (
        ("bos_token_id", "bos_token_id"),
        ("eos_token_id", "eos_token_id"),
        ("pad_token_id", "padding_token_id"),
    ):
        if keys.has(f"tokenizer.ggml.{key}"):
            config[ours] = keys.integer(f"tokenizer.ggml.{key}")
    return config


def _head_dim(keys: Keys, name: str, hidden: int, heads: int) -> int:
    """The width of q, k, v and of the rotated part: all the same here."""
    if hidden % heads and not keys.has(f"{name}.attention.key_length"):
        raise ConfigError(keys.where, f"{hidden} channels cannot be shared by {heads} heads")
    head_dim = keys.integer(f"{name}.attention.key_length", hidden // heads, least=1)
    for key in ("attention.value_length", "rope.dimension_count"):
        other = keys.integer(f"{name}.{key}", head_dim)
        if other != head_dim:
            raise ConfigError(keys.where, f"key `{name}.{key}` should be {head_dim}, the head dim, it is {other}")
    if head_dim % 2:
        raise ConfigError(keys.where, f"the head dim should be even, it is {head_dim}")
    return head_dim


def _vocab_size(file: GgufFile, keys: Keys, name: str) -> int:
    """Rows of the embedding; the key and the token list must agree with it."""
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise CheckpointError(keys.where, "tensor `token_embd.weight` [vocab, hidden] is not in the file")
    rows = embedding.shape[0]
    stated = keys.integer(f"{name}.vocab_size", rows)
    if stated != rows:
        raise ConfigError(keys.where, f"key `{name}.vocab_size` is {stated}, `token_embd.weight` has {rows} rows")
    return rows


def _rope_scaling(file: GgufFile, keys: Keys, name: str, config: dict[str, Any]) -> dict[str, Any] | None:
    prefix = f"{name}.rope.scaling"
    kind = keys.word(f"{prefix}.type", "none")
    factor = keys.number(f"{prefix}.factor", 0.0) or keys.number(f"{name}.rope.scale_linear", 0.0)
    factors = _rope_factors(file, keys, config["head_dim"] // 2)
    if kind == "none" and factor in (0.0, 1.0):
        return factors if factors is None else {**factors, **_original(config)}
    if factors is not None:
        raise ConfigError(keys.where, f"rope scaling `{kind}` together with tensor `{ROPE_FREQS}` is not known")
    if factor <= 0:
        raise ConfigError(keys.where, f"key `{prefix}.factor` should be above 0, it is {factor}")
    if kind in ("linear", "none"):  # files older than `rope.scaling.type` mean linear
        return {"rope_type": "linear", "factor": factor}
    if kind != "yarn":
        raise ConfigError(keys.where, f"rope scaling type `{kind}` should be none, linear or yarn")
    original = keys.integer(f"{prefix}.original_context_length", least=1)
    yarn: dict[str, Any] = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
    for key, ours in (
        ("yarn_beta_fast", "beta_fast"),
        ("yarn_beta_slow", "beta_slow"),
        ("yarn_attn_factor", "attention_factor"),
    ):
        if keys.has(f"{prefix}.{key}"):
            yarn[ours] = keys.number(f"{prefix}.{key}")
    return yarn


def _original(config: dict[str, Any]) -> dict[str, Any]:
    return {"original_max_position_embeddings": config["max_position_embeddings"]}


def _rope_factors(file: GgufFile, keys: Keys, pairs: int) -> dict[str, Any] | None:
    """`rope_freqs.weight` divides each inverse frequency (how llama.cpp stores Llama 3's scaling, already computed).

    On the hub that is rope type `longrope` with one list for all lengths: the same division, and transformers reads it.
    """
    tensor = file.tensors.get(ROPE_FREQS)
    if tensor is None:
        return None
    if tensor.type.name != "F32" or tensor.shape != (pairs,):
        raise CheckpointError(
            keys.where,
            f"tensor `{ROPE_FREQS}` should be F32 [{pairs}], it is {tensor.type.name} {list(tensor.shape)}",
        )
    values = np.frombuffer(file.data, "<f4", pairs, tensor.offset)
    if not np.isfinite(values).all() or (values <= 0).any():
        raise CheckpointError(keys.where, f"tensor `{ROPE_FREQS}` should hold finite numbers above 0")
    factors = [float(str(v)) for v in values]  # shortest decimal that reads back as the same f32
    return {
        "rope_type": "longrope",
        "factor": 1.0,
        "attention_factor": 1.0,
        "short_factor": factors,
        "long_factor": factors,
    }


def _window(keys: Keys, name: str, arch: Architecture, config: dict[str, Any]) -> None:
    """Llama with a window is what the hub calls Mistral."""
    key = f"{name}.attention.sliding_window"
    if arch.model_type == "llama" and keys.has(key) and keys.integer(key) > 0:
        config.update(
            architectures=["MistralForCausalLM"], model_type="mistral", sliding_window=keys.integer(key, least=1)
        )


def _biases(file: GgufFile, arch: Architecture, config: dict[str, Any]) -> None:
    """Llama and InternLM3 say in config.json which biases there are; the GGUF shows it by its tensors."""
    if arch.model_type != "llama":
        return
    qkv, out, mlp = (f"blk.0.{part}.bias" in file.tensors for part in ("attn_q", "attn_output", "ffn_down"))
    if qkv and not out and not mlp and config["model_type"] == "llama":
        config.update(architectures=["InternLM3ForCausalLM"], model_type="internlm3", qkv_bias=True, bias=False)
    elif config["model_type"] == "llama":
        config.update(attention_bias=qkv, mlp_bias=mlp)


def ignored_keys(keys: Keys) -> dict[str, str]:
    """The keys nobody used, each with the reason. Raises ConfigError for one that might matter."""
    name, ignored = keys.word("general.architecture"), {}
    for key, value in keys.values.items():
        if key in keys.used:
            continue
        if not key.startswith(f"{name}."):
            prefix = next((p for p in UNUSED_PREFIXES if key.startswith(p)), None)
            ignored[key] = UNUSED_PREFIXES[prefix] if prefix else "not a key of the model"
            continue
        short = key.removeprefix(f"{name}.")
        neutral, reason = NEUTRAL.get(short, ((), ""))
        if short in UNUSED:
            ignored[key] = UNUSED[short]
        elif any(value is n or (type(value) is type(n) and value == n) for n in neutral):
            ignored[key] = reason
        else:
            raise ConfigError(
                keys.where,
                f"key `{key}` = {describe(value)} is not known for GGUF architecture `{name}`",
                "the model computes something that Datong has no builder for",
            )
    return ignored
