"""`deepseek_v32`: DeepSeek-V3.2, which is V3 with an indexer: each query sees the `index_topk` keys it likes best.

Traps, each has been got wrong before:
- the indexer's rope turns halves, not neighbours as the attention's does; the first channels of a head, not the last.
- its queries come from the narrow vector of the queries, after that one's norm; its keys from the layer's input.
- the norm of its keys is a LayerNorm with a bias; eps is 1e-6 whatever the config says.
- published code turns queries and keys by a Hadamard matrix and rounds them to FP8: products are the same without.
"""

from __future__ import annotations

from dataclasses import replace

from datong.importer.config import Config
from datong.importer.models import deepseek_v3
from datong.importer.models.decoder import Decoder, Sparse
from datong.importer.show import show


def read(config: Config) -> Decoder:
    """Defaults: transformers DeepseekV32Config."""
    heads, dim = config.integer("index_n_heads", 64), config.integer("index_head_dim", 128)
    top_k = config.integer("index_topk", 2048)
    kinds, mlps = config.raw("layer_types", None), config.raw("mlp_layer_types", None)
    config.expect("mlp_bias", False, "published models have no biases there")
    decoder = deepseek_v3.read(config)
    layers = len(decoder.layers)
    if kinds not in (None, ["indexed_attention"] * layers):
        raise config.error(f"`layer_types` should be `indexed_attention` {layers} times, it is {show(kinds)}")
    dense = sum(layer.experts is None for layer in decoder.layers)
    if mlps not in (None, ["dense"] * dense + ["sparse"] * (layers - dense)):
        raise config.error(f"`mlp_layer_types` should begin with {dense} `dense`, as `first_k_dense_replace` says")
    if decoder.latent is None or not decoder.latent.q_rank:
        raise config.error("`q_lora_rank` is null, the indexer makes its queries from that narrow vector")
    sparse = Sparse(heads, dim, top_k, "relu", scale=(dim * heads) ** -0.5)
    made = tuple(replace(layer, sparse=sparse) for layer in decoder.layers)
    return replace(decoder, layers=made)
