"""`minimax_m3_vl`: the text tower of MiniMax-M3.

Traps, each has been got wrong before:
- in most layers a query sees `sparse_topk_blocks` blocks of keys, chosen per key-value head; its own block always.
- all norms are (1 + w); those of q and k are per head, the indexer's too.
- the gate is the clipped one of gpt-oss, with 1 added to up, in dense layers, experts and the shared expert alike.
- `intermediate_size` is an expert's; dense layers have `dense_intermediate_size`.
- rope turns half of a head, of the indexer's heads as many channels.
- published configs say `sparse_attention_config` and frequencies per layer; transformers writes other keys.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from datong.importer.config import Config
from datong.importer.models.decoder import Decoder, Experts, Glu, Layer, Names, Sparse, read_sizes
from datong.importer.models.minimax_m2 import MTP
from datong.importer.models.towers import IMAGES
from datong.importer.rope import read_rope

NAMES = Names(embed="language_model.model.embed_tokens", layer="language_model.model.layers.{}.",
              norm="language_model.model.norm", head="language_model.lm_head")  # fmt: skip
SPARSE = "minimax_m3_sparse"
SPELLINGS = {"index_n_heads": "sparse_num_index_heads", "index_head_dim": "sparse_index_dim",
             "index_block_size": "sparse_block_size", "index_topk_blocks": "sparse_topk_blocks",
             "index_local_blocks": "sparse_local_block"}  # fmt: skip
OUTER = ("vision_config", "image_token_index", "video_token_index", "merged_hidden_size", "projector_hidden_size",
         "image_token_id", "video_token_id", "img_token_compression_config", "projector_hidden_act",
         "multimodal_projector_bias", "vision_feature_layer", "vision_feature_select_strategy", "image_seq_length",
         "image_grid_pinpoints", "process_image_mode", "image_token_compression_method")  # fmt: skip
DEFAULTS = {"index_n_heads": 4, "index_head_dim": 128, "index_block_size": 128, "index_topk_blocks": 16,
            "index_local_blocks": 1}  # fmt: skip


def read_outer(outer: Config) -> Decoder:
    """The text tower; the vision tower is left out."""
    for key in OUTER:
        outer.ignore(key, IMAGES)
    config = outer.inner("text_config")
    config.ignore("model_type", "the text tower is read here")
    decoder = read(config)
    config.finish()
    inner = decoder.tied if "tie_word_embeddings" in config else False
    return replace(decoder, tied=outer.flag("tie_word_embeddings", inner))


def read(config: Config) -> Decoder:
    """Defaults: transformers MiniMaxM3VLTextConfig."""
    act = config.text("hidden_act", "swigluoai")
    if act not in ("swigluoai", "silu"):  # transformers saves `silu`, and computes the other all the same
        raise config.error(f"config key `hidden_act` should be `swigluoai`, it is `{act}`")
    s = read_sizes(config, kv_heads=4, head_dim=128, activation="", inner=3072)
    _expect(config)
    glu = Glu("oai", config.number("swiglu_limit", 7.0), config.number("swiglu_alpha", 1.702))
    shared = config.integer("shared_intermediate_size", 3072) * config.integer("n_shared_experts", 1)
    experts = Experts(
        config.either("num_local_experts", "num_experts", 128), config.integer("num_experts_per_tok", 4), s.inner,
        score="sigmoid", scale=config.number("routed_scaling_factor", 2.0), glu=glu,
        router="block_sparse_moe.gate", select_bias="block_sparse_moe.e_score_correction_bias",
        gate="block_sparse_moe.experts.{}.w1.weight", up="block_sparse_moe.experts.{}.w3.weight",
        down="block_sparse_moe.experts.{}.w2.weight", shared="block_sparse_moe.shared_experts.", shared_inner=shared,
        shared_glu=glu,
    )  # fmt: skip
    sparse, chosen = _sparse(config, s.layers, s.kv_heads)
    mixed = _per_layer(config, "mlp_layer_types", "sparse", config.raw("moe_layer_freq", None), s.layers)
    dense = Layer(s.heads, s.kv_heads, s.head_dim, config.integer("dense_intermediate_size", 12288), glu=glu)
    rotary = config.integer("rotary_dim", s.head_dim // 2)
    context = config.integer("max_position_embeddings", 524288)
    rope = read_rope(config, s.head_dim, context, 5e6, rotary / s.head_dim)
    if 2 * len(rope.inv_freq) > sparse.dim:
        raise config.error(f"rope turns {rotary} channels, the indexer's heads have {sparse.dim}")
    return Decoder(
        s.vocab, s.hidden,
        tuple(replace(dense, experts=experts if mixed[i] else None, sparse=sparse if chosen[i] else None)
              for i in range(s.layers)),
        eps=config.number("rms_norm_eps", 1e-6), tied=config.flag("tie_word_embeddings", False), ropes=(rope,),
        qk_norm="head", norm_offset=1.0, names=NAMES,
        ignored=((r"(language_model\.model\.mtp\.)", MTP),
                 (r"(vision_tower|multi_modal_projector|patch_merge_mlp)\.", IMAGES)),
    )  # fmt: skip


def _expect(config: Config) -> None:
    for key in ("num_mtp_modules", "use_mtp", "mtp_transformer_layers", "num_nextn_predict_layers"):
        config.ignore(key, MTP)
    for key in ("router_jitter_noise", "output_router_logits"):
        config.ignore(key, "acts in training only")
    for key, wanted in (("use_gemma_norm", True), ("use_qk_norm", True), ("use_routing_bias", True),
                        ("qk_norm_type", "per_head"), ("scoring_func", "sigmoid"),
                        ("attention_output_gate", False), ("swiglu_beta", 1.0)):  # fmt: skip
        config.expect(key, wanted, "another value is another model")


def _sparse(config: Config, layers: int, kv_heads: int) -> tuple[Sparse, list[bool]]:
    """The indexer, and which layers have it."""
    stated = config.raw("sparse_attention_config", None)
    inner = Config(stated if isinstance(stated, dict) else {}, config.model_type, "`sparse_attention_config` key", {})
    found = {key: inner.integer(other, config.integer(key, DEFAULTS[key], minimum=0), minimum=0)
             for key, other in SPELLINGS.items()}  # fmt: skip
    inner.expect("use_sparse_attention", True, "without it this is another model")
    inner.expect("sparse_init_block", 0, "blocks at the beginning that are always seen are not known here")
    inner.expect("sparse_score_type", "max", "a block counts as its best key does")
    frequency = inner.raw("sparse_attention_freq", None)
    inner.ignore("sparse_disable_index_value", "published layers have no values in the indexer")
    inner.finish()
    if found["index_n_heads"] != kv_heads:
        raise config.error(
            f"the indexer should have a head for each of {kv_heads} key heads, it has {found['index_n_heads']}"
        )
    sparse = Sparse(
        kv_heads, found["index_head_dim"], found["index_topk_blocks"], "plain", groups=kv_heads,
        block=found["index_block_size"], local=found["index_local_blocks"], q="index_q_proj", k="index_k_proj",
        narrow=False, k_layer_norm="", weights="", q_norm="index_q_norm", k_norm="index_k_norm",
    )  # fmt: skip
    return sparse, _per_layer(config, "layer_types", SPARSE, frequency, layers)


def _per_layer(config: Config, key: str, word: str, frequency: Any, layers: int) -> list[bool]:
    """A list of words (transformers), or of 0 and 1 (published); neither: true for the words' default, all or none."""
    words = config.raw(key, None)
    if words is None and frequency is None:
        return [word == "sparse"] * layers
    found = [one == word for one in words] if isinstance(words, list) else [bool(one) for one in frequency or ()]
    if len(found) != layers:
        raise config.error(f"`{key}` should have {layers} entries, it has {len(found)}")
    return found
