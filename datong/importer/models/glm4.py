"""`glm4`: GLM-4-0414 (9B, 32B) and GLM-Z1.

Traps, each has been got wrong before:
- four norms a layer: what attention and MLP give is normed before the residual (post_self_attn_, post_mlp_layernorm).
- rope turns neighbouring channels, and only the first half of each head.
- `gate_up_proj` is one matrix, the gate's rows first.
- q, k and v have biases if `attention_bias`, o has none.
- `rms_norm_eps` absent means 1.5625e-07.
"""

from __future__ import annotations

from datong.importer.config import Config
from datong.importer.models.decoder import Decoder, Names, read_sizes, uniform
from datong.importer.rope import read_rope

NAMES = Names(
    attn_out_norm="post_self_attn_layernorm", mlp_out_norm="post_mlp_layernorm", gate_up="gate_up_proj"
)  # fmt: skip


def read(config: Config) -> Decoder:
    """Defaults: transformers Glm4Config."""
    s = read_sizes(config, kv_heads=2, head_dim=128)
    return uniform(
        **vars(s), eps=config.number("rms_norm_eps", 0.00000015625), tied=config.flag("tie_word_embeddings", False),
        rope=read_rope(config, s.head_dim, config.integer("max_position_embeddings", 131072), partial=0.5),
        qkv_bias=config.flag("attention_bias", False), interleaved=True, names=NAMES,
    )  # fmt: skip
