"""`qwen3_5_text`, `qwen3_5_moe_text`, and the text towers of `qwen3_5` and `qwen3_5_moe`: Qwen3.5.

Qwen3-Next's layers with a matrix each for z, b and a. Traps, each has been got wrong before:
- the hub nests the config and the names (`model.language_model.`), and stacks the experts: the rows of `gate_up_proj`
  [E, 2 I, H] are the gate's first. transformers saves the text model with a tensor per expert.
- rope has three axes for images; in text they are equal, and it is the ordinary one on a quarter of a head.
- the weights of the chosen experts are always renormalised; there is no `norm_topk_prob`.
- the weights for speculation (`mtp.`) come with the checkpoint.
"""

from __future__ import annotations

from dataclasses import replace

from datong.importer.config import Config
from datong.importer.models.decoder import HALVES, SINGLE, Decoder, Names, Reader
from datong.importer.models.qwen3_next import read_experts, read_hybrid

IMAGES = "reads images; a text package computes without it"
NESTED = Names(embed="model.language_model.embed_tokens", layer="model.language_model.layers.{}.",
               norm="model.language_model.norm")  # fmt: skip


def read(config: Config) -> Decoder:
    """Defaults: transformers Qwen3_5TextConfig."""
    config.expect("mlp_only_layers", [], "no layer has experts")
    return read_hybrid(config, kv_heads=4, grouped=False, inner=12288)


def read_moe(config: Config) -> Decoder:
    """Defaults: transformers Qwen3_5MoeTextConfig; every layer has experts."""
    config.expect("mlp_only_layers", [], "every layer of published models has experts")
    experts = read_experts(config, config.either("num_experts", "num_local_experts", 256), 8)
    decoder = read_hybrid(config, kv_heads=2, grouped=False, inner=1)  # no layer has a dense MLP
    return replace(decoder, layers=tuple(replace(layer, experts=experts) for layer in decoder.layers))


def read_outer(outer: Config) -> Decoder:
    """The text tower of the dense model with images."""
    return _tower(outer, read)


def read_moe_outer(outer: Config) -> Decoder:
    """The text tower of the model with experts and images; the hub stacks the experts."""
    decoder = _tower(outer, read_moe)
    layers = tuple(
        replace(layer, experts=e and replace(e, gate=HALVES.gate, up="", down=HALVES.down, order=HALVES.order,
                                             also=(SINGLE,)))
        for layer in decoder.layers for e in [layer.experts]
    )  # fmt: skip
    return replace(decoder, layers=layers)


def _tower(outer: Config, read_text: Reader) -> Decoder:
    """`text_config` has the keys; where it does not say whether the embeddings are tied, the outside does."""
    for key in ("vision_config", "image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"):
        outer.ignore(key, IMAGES)
    config = outer.inner("text_config")
    config.ignore("model_type", "the text tower is read here")
    decoder = read_text(config)
    config.finish()
    if "tie_word_embeddings" in config:
        outer.expect("tie_word_embeddings", decoder.tied, "the text tower says otherwise")
    else:
        decoder = replace(decoder, tied=outer.flag("tie_word_embeddings", False))
    return replace(decoder, names=NESTED, ignored=(*decoder.ignored, (r"model\.visual\.", IMAGES)))
