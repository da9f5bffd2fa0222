"""`qwen2`: Qwen2, Qwen2.5 (text). Llama's names.

Traps, each has been got wrong before:
- q, k and v always have biases, o never has one, and no config key says so.
- `sliding_window` means nothing unless `use_sliding_window`; then the layers from `max_window_layers` on slide, or
  those that `layer_types` names.
- Small sizes tie the embeddings, large ones do not.
- `num_key_value_heads` absent means 32.
"""

from __future__ import annotations

from datong.importer.config import Config
from datong.importer.models.decoder import Decoder, read_sizes, read_windows, uniform
from datong.importer.rope import read_rope


def read(config: Config) -> Decoder:
    """Defaults: transformers Qwen2Config."""
    s = read_sizes(config, kv_heads=32)
    config.expect("use_mrope", False, "positions in three axes belong to the vision models")
    return uniform(
        **vars(s), eps=config.number("rms_norm_eps", 1e-6), tied=config.flag("tie_word_embeddings", False),
        rope=read_rope(config, s.head_dim, config.integer("max_position_embeddings", 32768)),
        windows=read_windows(config, s.layers), qkv_bias=True,
    )  # fmt: skip
