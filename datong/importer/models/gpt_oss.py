"""`gpt_oss`: gpt-oss-20b, 120b; experts as MXFP4, BF16 or F32.

Traps, each has been got wrong before:
- a sink per head takes its share of each softmax.
- experts are stored [E, in, out]; columns of `gate_up_proj` alternate: gate, up, gate, up, …; they have biases.
- the glu is clipped (`swiglu_limit`), has alpha 1.702, and adds 1 to up.
- softmax over the chosen logits, which is softmax over all, renormalised; the router has a bias.
- every other layer has a window; yarn with `truncate` false.
- the hub stores the experts as MXFP4, [E, out, in]: not swapped, gate and up alternating all the same.
"""

from __future__ import annotations

from datong.importer.config import Config
from datong.importer.models.decoder import Decoder, Experts, Glu, Layer, Names, read_sizes
from datong.importer.rope import read_rope


def read(config: Config) -> Decoder:
    """Defaults: transformers GptOssConfig."""
    s = read_sizes(config, kv_heads=8, head_dim=64)
    config.ignore("output_router_logits", "chooses what a Python forward returns")
    config.ignore("initial_context_length", "`rope_scaling` says it again")
    bias = config.flag("attention_bias", True)
    experts = Experts(
        config.integer("num_local_experts", 128), config.either("num_experts_per_tok", "experts_per_token", 4), s.inner,
        glu=Glu("oai", config.number("swiglu_limit", 7.0), config.number("swiglu_alpha", 1.702)),
        router="mlp.router", router_bias=True, gate="mlp.experts.gate_up_proj", up="", down="mlp.experts.down_proj",
        order="pairs", swapped=True, gate_bias="mlp.experts.gate_up_proj_bias", down_bias="mlp.experts.down_proj_bias",
    )  # fmt: skip
    window = config.integer("sliding_window", 128)
    kinds = config.raw("layer_types", None) or [
        ("full", "sliding")[(i + 1) % 2] + "_attention" for i in range(s.layers)
    ]
    if len(kinds) != s.layers or not all(kind in ("full_attention", "sliding_attention") for kind in kinds):
        raise config.error(f"`layer_types` should have {s.layers} entries, `full_attention` or `sliding_attention`")
    return Decoder(
        s.vocab, s.hidden,
        layers=tuple(
            Layer(s.heads, s.kv_heads, s.head_dim, s.inner, window if kind == "sliding_attention" else 0,
                  experts=experts)
            for kind in kinds
        ),
        eps=config.number("rms_norm_eps", 1e-5), tied=config.flag("tie_word_embeddings", False),
        ropes=(read_rope(config, s.head_dim, config.integer("max_position_embeddings", 131072), 150000.0),),
        qkv_bias=bias, o_bias=bias, names=Names(sinks="sinks"),
    )  # fmt: skip
