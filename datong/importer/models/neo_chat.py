"""`neo_chat`: the text path of SenseNova-U1.

Traps, each has been got wrong before:
- each head is two halves with a norm of their own (`q_norm`, `q_norm_hw`); text rotates the first half only, with the
  frequencies of a head of half the size, because rows and columns of text are 0.
- the sizes stand in `llm_config`, the tensors under `language_model.`.
- the A3B edition has experts, of which nothing says so but the keys of Qwen3-MoE in `llm_config`.
- `*_mot_gen` weights make images; `vision_model` and `fm_modules` read and draw them.
"""

from __future__ import annotations

from dataclasses import replace

from datong.importer.config import Config
from datong.importer.models.decoder import Decoder, Layer, Names, read_sizes, read_windows
from datong.importer.models.qwen3_moe import read_experts
from datong.importer.rope import read_rope

NAMES = Names(
    embed="language_model.model.embed_tokens", layer="language_model.model.layers.{}.",
    norm="language_model.model.norm",
    head="language_model.lm_head",
)  # fmt: skip
IMAGES = "reads or makes images; a text package computes without it"


def read(outer: Config) -> Decoder:
    """Defaults: Qwen3Config, from which the published configuration derives."""
    for key in ("vision_config", "downsample_ratio", "patch_size", "template", "fm_config"):
        outer.ignore(key, IMAGES)
    config = outer.inner("llm_config")
    config.ignore("model_type", "the text path of neo_chat is read here")
    for key in ("rope_theta_hw", "max_position_embeddings_hw"):
        config.ignore(key, "turns channels by row and column, which are 0 in text")
    s = read_sizes(config, kv_heads=32, head_dim=128)
    if any(read_windows(config, s.layers)):
        raise config.error("windows are not known for model_type `neo_chat`")
    bias = config.flag("attention_bias", False)
    rope = read_rope(config, s.head_dim // 2, config.integer("max_position_embeddings", 32768))
    tied = outer.flag("tie_word_embeddings", config.flag("tie_word_embeddings", False))
    decoder = Decoder(
        s.vocab, s.hidden, _layers(config, Layer(s.heads, s.kv_heads, s.head_dim, s.inner), s.layers),
        eps=config.number("rms_norm_eps", 1e-6), tied=tied, ropes=(rope,), qkv_bias=bias, o_bias=bias,
        qk_norm="halves", names=NAMES, ignored=((r"(.*_mot_gen(\.|$)|vision_model\.|fm_modules\.)", IMAGES),),
    )  # fmt: skip
    config.finish()
    return decoder


def _layers(config: Config, layer: Layer, count: int) -> tuple[Layer, ...]:
    """The 8B's are dense, the A3B's have the experts of Qwen3-MoE."""
    if "num_experts" not in config and "num_local_experts" not in config:
        return (layer,) * count
    experts = read_experts(config)
    dense, step = config.integers("mlp_only_layers", ()), config.integer("decoder_sparse_step", 1)
    sparse = replace(layer, experts=experts)
    return tuple(layer if i in dense or (i + 1) % step else sparse for i in range(count))
