"""`llama`: Llama 1 to 3.x, SmolLM2 and everything saved under that model_type.

Traps, each has been got wrong before:
- `head_dim` may be absent (hidden / heads) or present and different from hidden / heads.
- `attention_bias` adds biases to q, k, v *and* o; `mlp_bias` to gate, up and down.
- `num_key_value_heads` absent means one per query head, not one.
- Tied checkpoints have no `lm_head`; some have one nevertheless, and it is to be ignored.
- rope type `llama3` changes the frequencies also at short lengths.
- GGUF files of this family hold q and k with permuted rows; that is undone in importer/gguf, not here.
"""

from __future__ import annotations

from datong.importer.config import Config
from datong.importer.models.decoder import Decoder, read_sizes, uniform
from datong.importer.rope import read_rope


def read(config: Config) -> Decoder:
    """Defaults: transformers LlamaConfig."""
    s = read_sizes(config)
    config.expect("pretraining_tp", 1, "weights split for training in slices are not supported")
    config.expect("rope_interleaved", False, "published checkpoints rotate halves, whatever their origin rotated")
    config.expect("activation", "swiglu", "Falcon 3 says so beside `hidden_act`; another activation is another model")
    bias, mlp_bias = config.flag("attention_bias", False), config.flag("mlp_bias", False)
    return uniform(
        **vars(s), eps=config.number("rms_norm_eps", 1e-6), tied=config.flag("tie_word_embeddings", False),
        rope=read_rope(config, s.head_dim, config.integer("max_position_embeddings", 2048)),
        qkv_bias=bias, o_bias=bias, mlp_bias=mlp_bias,
    )  # fmt: skip
