"""`step3_text`: the text tower of Step-3.

Traps, each has been got wrong before:
- queries go through a narrow matrix (`share_q_dim`), a norm, and then out to the heads (`wq`); one key-value head.
- `moe_layers_enum` is a string of layer numbers; the others have an MLP of `intermediate_size`.
- softmax router; the weights are renormalised only if `norm_expert_weight`, which is false in the published model.
- experts are stacked [E, out, in]; one shared expert without a gate.
"""

from __future__ import annotations

from dataclasses import replace

from datong.importer.config import Config
from datong.importer.models.decoder import Decoder, Experts, Layer, Names, Stacks, read_sizes
from datong.importer.rope import read_rope

# as compressed-tensors has them
APART = Stacks(*(f"moe.experts.{{}}.{part}_proj.weight" for part in ("gate", "up", "down")))
NAMES = Names(q="wq", q_in="q_proj", q_in_norm="inter_norm")


def read(config: Config) -> Decoder:
    """Defaults: vLLM's `configs/step3_vl.py`."""
    s = read_sizes(config, kv_heads=config.integer("num_attention_groups", 1), head_dim=256)
    context = config.either("max_position_embedding", "max_position_embeddings", 65536)
    experts = Experts(
        config.integer("moe_num_experts", 48), config.integer("moe_top_k", 3),
        config.integer("moe_intermediate_size", 5120), renorm=config.flag("norm_expert_weight", False),
        router="moe.gate", gate="moe.gate_proj.weight", up="moe.up_proj.weight", down="moe.down_proj.weight",
        shared="share_expert.", shared_inner=config.integer("share_expert_dim", 5120), also=(APART,),
    )  # fmt: skip
    sparse = config.numbers_in_text("moe_layers_enum", range(4, s.layers - 1))
    layer = Layer(s.heads, s.kv_heads, s.head_dim, s.inner)
    return Decoder(
        s.vocab, s.hidden,
        layers=tuple(replace(layer, experts=experts) if i in sparse else layer for i in range(s.layers)),
        eps=config.number("rms_norm_eps", 1e-5), tied=config.flag("tie_word_embeddings", False),
        ropes=(read_rope(config, s.head_dim, context, 500000.0),), q_rank=config.integer("share_q_dim", 2048),
        names=NAMES,
    )  # fmt: skip
