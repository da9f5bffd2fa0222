"""`glm4_moe_lite`: GLM-4.7-Flash: DeepSeek-V3's layers with other sizes.

Traps, each has been got wrong before:
- a head of v (256) is as wide as the whole of a head of q and k, not as its plain part.
- `mlp_layer_types` says which layers have experts; older configs have `first_k_dense_replace`.
"""

from __future__ import annotations

from datong.importer.config import Config
from datong.importer.models.decoder import Decoder, Latent
from datong.importer.models.deepseek_v3 import Defaults, read_latent, read_latent_decoder
from datong.importer.models.glm4_moe import read_deepseek_experts


def read(config: Config) -> Decoder:
    """Defaults: transformers Glm4MoeLiteConfig."""
    experts = read_deepseek_experts(config, groups=1, scale=1.8, count=64, top_k=4, inner=1536)
    latent = read_latent(config, Latent(q_rank=768, kv_rank=512, plain=192, rope=64, value=256))
    return read_latent_decoder(config, Defaults(202752, 1e-5), latent, experts, _dense_layers(config))


def _dense_layers(config: Config) -> int:
    """How many layers are dense; they come first."""
    dense = config.integer("first_k_dense_replace", 1, minimum=0)
    types = config.raw("mlp_layer_types", None)
    if types is None:
        return dense
    layers = config.integer("num_hidden_layers")
    count = types.count("dense") if isinstance(types, list) else 0
    if types != ["dense"] * count + ["sparse"] * (layers - count):
        raise config.error(f"`mlp_layer_types` should be `dense` some times, then `sparse`, {layers} in all")
    if "first_k_dense_replace" in config and dense != count:
        raise config.error(
            f"`first_k_dense_replace` is {dense}, and `mlp_layer_types` begins with {count} dense layers"
        )
    return count
