"""`qwen3`: Qwen3 dense (text). Llama's names.

Traps, each has been got wrong before:
- q and k pass an RMSNorm per head, one weight of head_dim for all heads, before rope.
- `head_dim` is not hidden / heads; absent it means 128.
- `attention_bias`, where true, adds biases to q, k, v and o; unlike Qwen2 there are none by default.
- yarn, where a user adds it, also multiplies cos and sin by 0.1 ln(factor) + 1.
- `num_key_value_heads` absent means 32.
"""

from __future__ import annotations

from datong.importer.config import Config
from datong.importer.models.decoder import Decoder, read_sizes, read_windows, uniform
from datong.importer.rope import read_rope


def read(config: Config) -> Decoder:
    """Defaults: transformers Qwen3Config."""
    return _read(config, 32768, 10000.0)


def read_vl(config: Config) -> Decoder:
    """Defaults: transformers Qwen3VLTextConfig; positions have three axes, equal in text."""
    return _read(config, 128000, 500000.0, axes=True)


def _read(config: Config, context: int, theta: float, axes: bool = False) -> Decoder:
    s = read_sizes(config, kv_heads=32, head_dim=128)
    bias = config.flag("attention_bias", False)
    return uniform(
        **vars(s), eps=config.number("rms_norm_eps", 1e-6), tied=config.flag("tie_word_embeddings", False),
        rope=read_rope(config, s.head_dim, config.integer("max_position_embeddings", context), theta, axes=axes),
        windows=read_windows(config, s.layers), qkv_bias=bias, o_bias=bias, qk_norm="head",
    )  # fmt: skip
