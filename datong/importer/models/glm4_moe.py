"""`glm4_moe`: GLM-4.5, 4.6, 4.7 and their Air editions.

Traps, each has been got wrong before:
- half of each head rotates, its two halves against each other, not neighbours as in `glm4`.
- sigmoid router with a bias that helps to choose and does not weigh; groups as in DeepSeek-V3.
- the first `first_k_dense_replace` layers have an MLP of `intermediate_size`, the others experts and shared experts.
- the norms of q and k are there only if `use_qk_norm` (not in Air).
- the layers after `num_hidden_layers` are heads for speculation.
"""

from __future__ import annotations

from dataclasses import replace

from datong.importer.config import Config
from datong.importer.models.decoder import Decoder, Experts, Layer, heads_of, read_sizes
from datong.importer.rope import read_rope

MTP = "layers for speculation that are not complete, or more than the config says"


def read(config: Config) -> Decoder:
    """Defaults: transformers Glm4MoeConfig."""
    s = read_sizes(config, kv_heads=8, head_dim=None if "head_dim" in config else 128)
    config.ignore("output_router_logits", "chooses what a Python forward returns")
    experts = read_deepseek_experts(config, groups=1, scale=1.0)
    dense = config.integer("first_k_dense_replace", 1, minimum=0)
    layer = Layer(s.heads, s.kv_heads, s.head_dim, s.inner)
    return Decoder(
        s.vocab, s.hidden,
        layers=tuple(layer if i < dense else replace(layer, experts=experts) for i in range(s.layers)),
        eps=config.number("rms_norm_eps", 1e-5), tied=config.flag("tie_word_embeddings", False),
        ropes=(read_rope(config, s.head_dim, config.integer("max_position_embeddings", 131072), partial=0.5),),
        qkv_bias=config.flag("attention_bias", False), qk_norm="head" if config.flag("use_qk_norm", False) else "",
        heads=heads_of(config, "num_nextn_predict_layers", s.layers, replace(layer, experts=experts)),
        ignored=extra_layers(s.layers),
    )  # fmt: skip


def read_deepseek_experts(
    config: Config, groups: int, scale: float, *, top_groups: int = 1, count: int = 128, top_k: int = 8,
    inner: int = 1408,
) -> Experts:  # fmt: skip
    """Experts as DeepSeek-V3 names and chooses them; all but `config` are the family's defaults."""
    config.expect("scoring_func", "sigmoid", "another router is another model")
    config.expect("topk_method", "noaux_tc", "another way to choose is another model")
    inner, shared = config.integer("moe_intermediate_size", inner), config.integer("n_shared_experts", 1, minimum=0)
    return Experts(
        config.integer("n_routed_experts", count), config.integer("num_experts_per_tok", top_k), inner, score="sigmoid",
        renorm=config.flag("norm_topk_prob", True), scale=config.number("routed_scaling_factor", scale),
        groups=config.integer("n_group", groups), top_groups=config.integer("topk_group", top_groups),
        select_bias="mlp.gate.e_score_correction_bias", shared="mlp.shared_experts." if shared else "",
        shared_inner=inner * shared,
    )  # fmt: skip


def extra_layers(layers: int) -> tuple[tuple[str, str], ...]:
    """Tensors of layers from number `layers` on are for speculation."""
    return ((rf"model\.(language_model\.)?layers\.(?!({'|'.join(map(str, range(layers)))})\.)\d+\.", MTP),)
