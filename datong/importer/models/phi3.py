"""`phi3`: Phi-3, Phi-3.5 (text), Phi-4, Phi-4-mini.

Traps, each has been got wrong before:
- `qkv_proj` holds all of q, then all of k, then all of v; `gate_up_proj` the gate's rows first.
- longrope has two lists of divisors: one for prompts up to `original_max_position_embeddings`, which stands outside the
  rope keys, one beyond. Keys cached under one are wrong under the other, so the context ends where the first list does.
- cos and sin are multiplied by sqrt(1 + ln(factor) / ln(original)), with the short list too.
- Phi-4-mini turns three quarters of each head.
- `sliding_window` counts in every layer; null means none.
"""

from __future__ import annotations

from datong.importer.config import Config
from datong.importer.models.decoder import Decoder, Names, read_sizes, uniform
from datong.importer.rope import read_rope

NAMES = Names(qkv="qkv_proj", gate_up="gate_up_proj")


def read(config: Config) -> Decoder:
    """Defaults: transformers Phi3Config."""
    s = read_sizes(config)
    context = config.integer("max_position_embeddings", 4096)
    original = config.integer("original_max_position_embeddings", context)
    window = 0 if config.raw("sliding_window", None) is None else config.integer("sliding_window")
    config.expect("embd_pdrop", 0.0, "dropout acts in training only")
    for key in ("attention_bias", "mlp_bias", "lm_head_bias"):
        config.expect(key, False, "published models have no biases")
    config.ignore("full_attn_mod", "every layer sees its whole window")
    config.ignore("interpolate_factor", "says again what the rope keys say")
    rope = read_rope(config, s.head_dim, context, partial=1.0, original=original, short_only=True)
    return uniform(
        **vars(s), eps=config.number("rms_norm_eps", 1e-5), tied=config.flag("tie_word_embeddings", False), rope=rope,
        windows=(window,) * s.layers, qkv_whole=True, names=NAMES,
    )  # fmt: skip
