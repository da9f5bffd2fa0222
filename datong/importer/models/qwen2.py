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
from datong.importer.models.decoder import Decoder, Sizes, read_sizes, read_windows, uniform
from datong.importer.rope import read_rope


def read(config: Config) -> Decoder:
    """Defaults: transformers Qwen2Config."""
    config.expect("use_mrope", False, "positions in three axes belong to the vision models")
    return _read(config, read_sizes(config, kv_heads=32), 1e-6, 10000.0, 28)


def read_vl(config: Config) -> Decoder:
    """Defaults: transformers Qwen2_5_VLTextConfig; positions have three axes, equal in text."""
    return _read(config, read_sizes(config, kv_heads=8), 1e-5, 1000000.0, 80, axes=True)


def _read(config: Config, s: Sizes, eps: float, theta: float, slide_from: int, axes: bool = False) -> Decoder:
    rope = read_rope(config, s.head_dim, config.integer("max_position_embeddings", 32768), theta, axes=axes)
    return uniform(
        **vars(s), eps=config.number("rms_norm_eps", eps), tied=config.flag("tie_word_embeddings", False), rope=rope,
        windows=read_windows(config, s.layers, slide_from), qkv_bias=True,
    )  # fmt: skip
