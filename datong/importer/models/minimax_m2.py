"""`minimax_m2`: MiniMax-M2, M2.1, M2.5, M2.7.

Traps, each has been got wrong before:
- q and k pass an RMSNorm over their whole width, all heads together, before rope.
- `rotary_dim` channels of a head rotate, or `partial_rotary_factor` of it; a config with neither rotates all.
- sigmoid router; the bias helps to choose and does not weigh; the weights are renormalised; no shared expert.
- `intermediate_size` is that of one expert; w1 gate, w3 up, w2 down.
- `use_mtp` announces heads for speculation whose weights were not published.
"""

from __future__ import annotations

from datong.importer.config import Config
from datong.importer.models.decoder import Decoder, Experts, Layer, read_sizes
from datong.importer.rope import read_rope

MTP = "weights for speculation; this family computes the next token without them"


def read(config: Config) -> Decoder:
    """Defaults: transformers MiniMaxM2Config."""
    s = read_sizes(config, kv_heads=8, head_dim=128)
    config.ignore("output_router_logits", "chooses what a Python forward returns")
    config.ignore("router_jitter_noise", "acts in training only")
    for key in ("use_mtp", "num_mtp_modules", "mtp_transformer_layers"):
        config.ignore(key, MTP)
    config.expect("attn_type_list", [1] * s.layers, "layers of another kind belong to MiniMax-Text-01")
    config.expect("qk_norm_type", "per_layer", "a norm per head is another model")
    config.expect("use_qk_norm", True, "published checkpoints have the norms")
    config.expect("use_routing_bias", True, "published checkpoints have the bias")
    config.expect("scoring_func", "sigmoid", "another router is another model")
    config.expect("shared_intermediate_size", 0, "published checkpoints have no shared expert")
    for key in ("shared_moe_mode", "mlp_intermediate_size"):
        config.ignore(key, "of layers that published checkpoints do not have")
    config.expect("sliding_window", None, "every layer sees everything")
    config.ignore("swa_rope_theta", "no layer has a window")
    for part in ("full_attention", "linear_attention", "mlp"):
        config.expect(f"layernorm_{part}_beta", 1.0, "the residual is the input, unscaled")
    experts = Experts(
        config.integer("num_local_experts", 256), config.integer("num_experts_per_tok", 8), s.inner, score="sigmoid",
        router="block_sparse_moe.gate", select_bias="block_sparse_moe.e_score_correction_bias",
        gate="block_sparse_moe.experts.{}.w1.weight", up="block_sparse_moe.experts.{}.w3.weight",
        down="block_sparse_moe.experts.{}.w2.weight",
    )  # fmt: skip
    rotary = config.integer("rotary_dim", s.head_dim)
    rope = read_rope(config, s.head_dim, config.integer("max_position_embeddings", 196608), 5e6, rotary / s.head_dim)
    return Decoder(
        s.vocab, s.hidden, (Layer(s.heads, s.kv_heads, s.head_dim, s.inner, experts=experts),) * s.layers,
        eps=config.number("rms_norm_eps", 1e-6), tied=config.flag("tie_word_embeddings", False), ropes=(rope,),
        qk_norm="whole", ignored=((r"model\.mtp\.", MTP),),
    )  # fmt: skip
