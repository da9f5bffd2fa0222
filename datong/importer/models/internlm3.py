"""`internlm3`: InternLM3. Llama's names and arithmetic.

Traps, each has been got wrong before:
- `qkv_bias` adds biases to q, k, v; `bias` to o, gate, up and down. transformers spells them `attention_bias` and
  `mlp_bias` inside, reads both spellings, and refuses a model in which they differ.
- `head_dim` absent means 128, `num_key_value_heads` absent means 2, `rms_norm_eps` absent means 1e-5.
- rope `dynamic` does nothing up to max_position_embeddings, which is the context.
"""

from __future__ import annotations

from datong.importer.config import Config
from datong.importer.models.decoder import Decoder, read_sizes, uniform
from datong.importer.rope import read_rope


def read(config: Config) -> Decoder:
    """Defaults: InternLM3Config of the published checkpoints and of transformers."""
    s = read_sizes(config, kv_heads=2, head_dim=128)
    bias = _flag(config, "bias", "mlp_bias")
    return uniform(
        **vars(s), eps=config.number("rms_norm_eps", 1e-5), tied=config.flag("tie_word_embeddings", False),
        rope=read_rope(config, s.head_dim, config.integer("max_position_embeddings", 32768)),
        qkv_bias=_flag(config, "qkv_bias", "attention_bias"), o_bias=bias, mlp_bias=bias,
    )  # fmt: skip


def _flag(config: Config, name: str, alias: str) -> bool:
    """A flag with two spellings; both may be there if they agree."""
    value = config.flag(alias, False)
    if config.flag(name, value) != value and config.raw(alias, None) is not None:
        raise config.error(f"config keys `{name}` and `{alias}` mean the same and contradict each other")
    return config.flag(name, value)
