"""`internlm2`: InternLM2 and 2.5. Llama's arithmetic under other names; transformers has no class for it.

Traps, each has been got wrong before:
- `wqkv` is packed per key-value head: its query heads, then its k, then its v; not all q, all k, all v.
- w1 is gate, w3 is up, w2 is down.
- `bias` adds wqkv.bias and wo.bias, nothing to the MLP, and absent it means true.
- rope `dynamic` does nothing up to max_position_embeddings, which is the context.
"""

from __future__ import annotations

from datong.importer.config import Config
from datong.importer.models.decoder import Decoder, Names, read_sizes, uniform
from datong.importer.rope import read_rope

NAMES = Names(
    embed="model.tok_embeddings", head="output", attn_norm="attention_norm", mlp_norm="ffn_norm",
    attn="attention.", qkv="wqkv", o="wo", mlp="feed_forward.", gate="w1", up="w3", down="w2",
)  # fmt: skip


def read(config: Config) -> Decoder:
    """Defaults: InternLM2Config of the published checkpoints (configuration_internlm2.py)."""
    s = read_sizes(config)
    config.expect("pretraining_tp", 1, "weights split for training in slices are not supported")
    bias = config.flag("bias", True)
    return uniform(
        **vars(s), eps=config.number("rms_norm_eps", 1e-6), tied=config.flag("tie_word_embeddings", False),
        rope=read_rope(config, s.head_dim, config.integer("max_position_embeddings", 2048)),
        qkv_bias=bias, o_bias=bias, names=NAMES,
    )  # fmt: skip
