"""`mixtral`: Mixtral-8x7B, 8x22B. Mistral with experts in the place of the MLP.

Traps, each has been got wrong before:
- softmax over all experts, top-k, and always renormalised.
- w1 is gate, w3 is up, w2 is down.
- `sliding_window` absent or null: none; `num_key_value_heads` absent means 8.
"""

from __future__ import annotations

from datong.importer.config import Config
from datong.importer.models.decoder import Decoder, Experts, Layer, read_sizes
from datong.importer.rope import read_rope


def read(config: Config) -> Decoder:
    """Defaults: transformers MixtralConfig."""
    s = read_sizes(config, kv_heads=8)
    config.ignore("output_router_logits", "chooses what a Python forward returns")
    config.ignore("router_jitter_noise", "acts in training only")
    experts = Experts(
        config.integer("num_local_experts", 8), config.integer("num_experts_per_tok", 2), s.inner,
        router="block_sparse_moe.gate", gate="block_sparse_moe.experts.{}.w1.weight",
        up="block_sparse_moe.experts.{}.w3.weight", down="block_sparse_moe.experts.{}.w2.weight",
    )  # fmt: skip
    window = 0 if config.raw("sliding_window", None) is None else config.integer("sliding_window")
    return Decoder(
        s.vocab, s.hidden, (Layer(s.heads, s.kv_heads, s.head_dim, s.inner, window, experts=experts),) * s.layers,
        eps=config.number("rms_norm_eps", 1e-5), tied=config.flag("tie_word_embeddings", False),
        ropes=(read_rope(config, s.head_dim, config.integer("max_position_embeddings", 131072), 1e6),),
    )  # fmt: skip
