"""`minimax_text_01` and `minimax_m1`: MiniMax-Text-01 and M1. Seven layers of eight are lightning attention.

Traps, each has been got wrong before:
- `attn_type_list`: 0 lightning, 1 softmax attention. Lightning has no rope, no softmax and no scale; q, k and v pass
  silu; `qkv_proj` goes per head: q, k, v.
- its decay is by head and layer: 2^(-8 (h + 1) / H), as ALiBi's slopes also where H is no power of two, times
  1 - layer / (layers - 1 + 1e-5) + 1e-5. The tables of it that some copies carry are not read.
- `rotary_dim` channels of a head rotate in softmax attention, half of them in the published models.
- a block gives alpha * (its normed input) + beta * (its result), with factors for each kind of block.
- the norm behind lightning attention has eps 1e-6, whatever `rms_norm_eps` is.
- softmax router; the weights of the chosen experts are renormalised; `intermediate_size` is that of one expert.
"""

from __future__ import annotations

from dataclasses import replace

from datong.importer.config import Config
from datong.importer.models import step1
from datong.importer.models.decoder import Decoder, Experts, Layer, read_sizes
from datong.importer.models.mixers import Lightning, Residual
from datong.importer.rope import read_rope

NORM_EPS = 1e-6  # the default of the published norm, which the model does not change
BLOCKS = ("linear_attention", "full_attention", "mlp")


def read(config: Config) -> Decoder:
    """Keys of the hub's config; the published models state all of them."""
    s = read_sizes(config, kv_heads=8, head_dim=128)
    config.ignore("output_router_logits", "chooses what a Python forward returns")
    config.ignore("router_jitter_noise", "acts in training only")
    config.ignore("block_size", "how the published code cuts the prompt; the result does not depend on it")
    config.ignore("shared_moe_mode", "of a shared expert, which published models have not")
    config.expect("shared_intermediate_size", 0, "published models have no shared expert")
    config.expect("postnorm", True, "another residual is another model")
    config.expect("sliding_window", None, "published models see the whole past")
    kinds = config.integers("attn_type_list")
    if len(kinds) != s.layers or not set(kinds) <= {0, 1}:
        raise config.error(f"`attn_type_list` should have {s.layers} entries, each 0 or 1")
    linear, full, mlp = (
        Residual(*(config.number(f"layernorm_{block}_{factor}", 1.0) for factor in ("alpha", "beta")))
        for block in BLOCKS
    )
    experts = Experts(
        config.integer("num_local_experts"), config.integer("num_experts_per_tok", 2), s.inner,
        router="block_sparse_moe.gate", gate="block_sparse_moe.experts.{}.w1.weight",
        up="block_sparse_moe.experts.{}.w3.weight", down="block_sparse_moe.experts.{}.w2.weight",
    )  # fmt: skip
    layer = Layer(s.heads, s.kv_heads, s.head_dim, s.inner, experts=experts, attn_residual=full, mlp_residual=mlp)
    context = config.integer("max_position_embeddings")
    rotary = config.integer("rotary_dim", s.head_dim)
    return Decoder(
        s.vocab, s.hidden,
        layers=tuple(
            layer if kind else replace(
                layer, attn_residual=linear,
                mixer=Lightning(s.heads, s.head_dim, slopes(s.heads, i, s.layers), NORM_EPS),
            )
            for i, kind in enumerate(kinds)
        ),
        eps=config.number("rms_norm_eps"), tied=config.flag("tie_word_embeddings", False),
        ropes=(read_rope(config, s.head_dim, context, 1e7, rotary / s.head_dim),),
        ignored=((r".*\.self_attn\.(slope_rate|query_decay|key_decay|diagonal_decay)$",
                  "a table that the graph computes from the config"),),
    )  # fmt: skip


def slopes(heads: int, layer: int, layers: int) -> tuple[float, ...]:
    """Decay per head of one layer. Source: `_build_slope_tensor` of the published code (vLLM `minimax_text_01.py`)."""
    share = 1 - layer / (layers - 1 + 1e-5) + 1e-5
    return tuple(slope * share for slope in step1.slopes(heads))
