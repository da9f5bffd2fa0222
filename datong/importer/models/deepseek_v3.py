"""`deepseek_v3`: DeepSeek-V3, V3.1 and R1, with latent attention.

Traps, each has been got wrong before:
- only the rope part of a head turns, neighbours against each other, and all heads share the key's.
- yarn's `mscale_all_dim` also scales the scores, by the square of what it gives.
- the norms of the narrow vectors have an eps of their own, 1e-6.
- groups of experts are ranked by their two best; the bias chooses, the sigmoid without it weighs.
- `head_dim` means nothing; `q_lora_rank` may be null, then there is `q_proj`.
- the layers after `num_hidden_layers` are for speculation.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from datong.importer.config import Config
from datong.importer.models.decoder import MAX_HEAD_DIM, Decoder, Experts, Latent, Layer, heads_of, read_sizes
from datong.importer.models.glm4_moe import extra_layers, read_deepseek_experts
from datong.importer.rope import read_rope, score_mscale


def read(config: Config) -> Decoder:
    """Defaults: transformers DeepseekV3Config."""
    config.ignore("ep_size", "spreads experts in training")
    for key in ("aux_loss_alpha", "seq_aux"):
        config.ignore(key, "a loss of training")
    config.expect("moe_layer_freq", 1, "experts in every layer after the dense ones")
    experts = read_deepseek_experts(config, groups=8, scale=2.5, top_groups=4, count=256, inner=2048)
    dense = config.integer("first_k_dense_replace", 3, minimum=0)
    latent = read_latent(config, Latent(q_rank=1536, kv_rank=512, plain=128, rope=64, value=128))
    return read_latent_decoder(config, Defaults(4096, 1e-6), latent, experts, dense)


@dataclass(frozen=True)
class Defaults:
    """What a config of the family may leave out."""

    context: int  # tokens
    eps: float


def read_latent(config: Config, default: Latent) -> Latent:
    """Widths of latent attention; raises ConfigError where they do not go together."""
    q_rank = 0 if config.raw("q_lora_rank", default.q_rank) is None else config.integer("q_lora_rank", default.q_rank)
    latent = Latent(
        q_rank,
        config.integer("kv_lora_rank", default.kv_rank),
        config.integer("qk_nope_head_dim", default.plain, maximum=MAX_HEAD_DIM),
        config.integer("qk_rope_head_dim", default.rope, maximum=MAX_HEAD_DIM),
        config.integer("v_head_dim", default.value, maximum=MAX_HEAD_DIM),
    )
    if latent.rope % 2:
        raise config.error(f"`qk_rope_head_dim` should be even, for rope, it is {latent.rope}")
    dim = latent.plain + latent.rope
    if config.integer("qk_head_dim", dim) != dim:
        raise config.error(f"`qk_head_dim` should be {dim}, the sum of `qk_nope_head_dim` and `qk_rope_head_dim`")
    return latent


def read_latent_decoder(config: Config, default: Defaults, latent: Latent, experts: Experts, dense: int) -> Decoder:
    """A decoder of `dense` layers, then layers of `experts`, all with latent attention."""
    s = read_sizes(config, head_dim=latent.rope)
    if s.kv_heads != s.heads:
        message = f"`num_key_value_heads` should be {s.heads}, as `num_attention_heads`, it is {s.kv_heads}"
        raise config.error(message, "latent attention has a key and a value for each query head")
    config.expect("pretraining_tp", 1, "weights split for training in slices are not supported")
    config.ignore("output_router_logits", "chooses what a Python forward returns")
    config.ignore("num_mtp_layers", "says num_nextn_predict_layers again")
    bias = config.flag("attention_bias", False)
    context = config.integer("max_position_embeddings", default.context)
    layer = Layer(s.heads, s.heads, latent.plain + latent.rope, s.inner)
    return Decoder(
        s.vocab, s.hidden,
        layers=tuple(layer if i < dense else replace(layer, experts=experts) for i in range(s.layers)),
        eps=config.number("rms_norm_eps", default.eps), tied=config.flag("tie_word_embeddings", False),
        ropes=(read_rope(config, latent.rope, context),), qkv_bias=bias, o_bias=bias, latent=latent,
        interleaved=config.flag("rope_interleave", True),
        attn_scale=(latent.plain + latent.rope) ** -0.5 * score_mscale(config),
        heads=heads_of(config, "num_nextn_predict_layers", s.layers, replace(layer, experts=experts)),
        ignored=extra_layers(s.layers),
    )  # fmt: skip
