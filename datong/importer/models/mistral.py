"""`mistral`: Mistral 7B, Nemo and Small (text). Llama's names, no biases.

Traps, each has been got wrong before:
- `sliding_window`: absent means 4096, null means none, and a number holds for every layer: query i sees key j where
  i - j < window, its own included.
- `head_dim` is not hidden / heads in Nemo (128 where 5120 / 32 = 160).
- `num_key_value_heads` absent means 8.
"""

from __future__ import annotations

from datong.importer.config import Config
from datong.importer.models.decoder import Decoder, read_sizes, uniform
from datong.importer.rope import read_rope


def read(config: Config) -> Decoder:
    """Defaults: transformers MistralConfig."""
    s = read_sizes(config, kv_heads=8)
    window = 0 if config.raw("sliding_window", 4096) is None else config.integer("sliding_window", 4096)
    return uniform(
        **vars(s), eps=config.number("rms_norm_eps", 1e-6), tied=config.flag("tie_word_embeddings", False),
        rope=read_rope(config, s.head_dim, config.integer("max_position_embeddings", 131072)),
        windows=(window,) * s.layers,
    )  # fmt: skip
