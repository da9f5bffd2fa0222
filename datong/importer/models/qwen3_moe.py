"""`qwen3_moe`: Qwen3-30B-A3B, 235B-A22B. Qwen3 with experts in the place of the MLP.

Traps, each has been got wrong before:
- softmax over all experts, then top-k; the weights are renormalised only if `norm_topk_prob`, which absent is false.
- layer i has experts if it is not in `mlp_only_layers` and (i + 1) is a multiple of `decoder_sparse_step`.
- `head_dim` is not hidden / heads; absent it means hidden / heads here, unlike in `qwen3`.
- the number of experts is `num_experts`; transformers 5 saves it as `num_local_experts`.
"""

from __future__ import annotations

from dataclasses import replace

from datong.importer.config import Config
from datong.importer.models.decoder import Decoder, Experts, Layer, read_sizes, read_windows
from datong.importer.rope import read_rope


def read(config: Config) -> Decoder:
    """Defaults: transformers Qwen3MoeConfig."""
    s = read_sizes(config, kv_heads=4)
    bias = config.flag("attention_bias", False)
    experts = read_experts(config)
    dense, step = config.integers("mlp_only_layers", ()), config.integer("decoder_sparse_step", 1)
    windows = read_windows(config, s.layers)
    layer = Layer(s.heads, s.kv_heads, s.head_dim, s.inner)
    return Decoder(
        s.vocab, s.hidden,
        layers=tuple(
            replace(layer, window=windows[i], experts=None if i in dense or (i + 1) % step else experts)
            for i in range(s.layers)
        ),
        eps=config.number("rms_norm_eps", 1e-6), tied=config.flag("tie_word_embeddings", False),
        ropes=(read_rope(config, s.head_dim, config.integer("max_position_embeddings", 32768)),),
        qkv_bias=bias, o_bias=bias, qk_norm="head",
    )  # fmt: skip


def read_experts(config: Config) -> Experts:
    """Of the families that name their experts as Qwen3-MoE does."""
    config.ignore("output_router_logits", "chooses what a Python forward returns")
    count = config.either("num_experts", "num_local_experts", 128)
    return Experts(
        count, config.integer("num_experts_per_tok", 8), config.integer("moe_intermediate_size", 768),
        renorm=config.flag("norm_topk_prob", False),
    )  # fmt: skip
