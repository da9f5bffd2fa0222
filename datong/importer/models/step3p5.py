"""`step3p5`: Step-3.5-Flash, as the hub has it and as transformers saves it; `step3p7`: the text tower of Step-3.7.

Traps, each has been got wrong before:
- sliding layers have other head counts and another rope (theta, share of the channels, scaling) than full ones.
- all norms are (1 + w), those of q and k per head too; what attention gives is gated per head.
- sigmoid router with a bias that helps to choose; `moe_layers_enum` is a string of layer numbers.
- the limits clip *after* silu, per layer, one for the experts and one for the shared one; 0 means none.
- per-layer lists also cover the layers after `num_hidden_layers`, which are heads for speculation.
- the defaults of the configuration class are not the published model's: what a config omits is an error here.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from datong.importer.config import Config
from datong.importer.models.decoder import Decoder, Experts, Glu, Head, Layer, Names
from datong.importer.models.glm4_moe import extra_layers
from datong.importer.models.step3_text import APART
from datong.importer.rope import Rope, read_rope

NAMES = Names(gate_heads="g_proj")
NESTED = replace(NAMES, embed="model.language_model.embed_tokens", layer="model.language_model.layers.{}.",
                 norm="model.language_model.norm")  # fmt: skip
KINDS = ("full_attention", "sliding_attention")


def read(config: Config) -> Decoder:
    """Both spellings of the text config; see the tables below for which key stands for which."""
    hub = "num_attention_groups" in config
    layers = config.integer("num_hidden_layers", maximum=10_000)
    kinds = per_layer(config, "layer_types", layers)
    if not all(kind in KINDS for kind in kinds):
        raise config.error(f"`layer_types` should be of {', '.join(KINDS)}")
    full = Layer(
        config.integer("num_attention_heads"), config.integer("num_attention_groups" if hub else "num_key_value_heads"),
        config.integer("head_dim"), config.integer("intermediate_size"),
    )  # fmt: skip
    sliding = replace(_sliding(config, full) if hub else _sliding_saved(config, full, kinds), rope=1,
                      window=config.integer("sliding_window"))  # fmt: skip
    context = config.integer("max_position_embeddings")
    ropes = _ropes(config, kinds, full.head_dim, context) if hub else _ropes_saved(config, full.head_dim, context)
    experts, sparse = _experts(config, layers) if hub else _experts_saved(config, layers)
    limits, shared = (per_layer(config, f"swiglu_limits{end}", layers, 0.0) for end in ("", "_shared"))
    _expect(config, hub)
    each = []
    for i, kind in enumerate(kinds):
        layer = full if kind == KINDS[0] else sliding
        if i in sparse:
            chosen = replace(experts, glu=_glu(limits[i]), shared_glu=_glu(shared[i]))
            layer = replace(layer, experts=chosen)
        else:
            layer = replace(layer, glu=_glu(shared[i]))
        each.append(layer)
    return Decoder(
        config.integer("vocab_size"), config.integer("hidden_size"), tuple(each), eps=config.number("rms_norm_eps"),
        tied=config.flag("tie_word_embeddings", False), ropes=ropes, context=context, qk_norm="head", norm_offset=1.0,
        names=NAMES, heads=_heads(config, hub, layers, full, sliding), ignored=extra_layers(layers),
    )  # fmt: skip


def _heads(config: Config, hub: bool, layers: int, full: Layer, sliding: Layer) -> tuple[Head, ...]:
    """Heads for speculation: dense layers, whose kinds and limits follow those of the layers in the lists."""
    count = config.integer("num_nextn_predict_layers", 0, minimum=0, maximum=64)
    if not hub:
        config.ignore("mtp_mlp_layer_types", "the layers of published heads are dense")
    kinds = per_layer(config, "layer_types", layers + count)[layers:] if hub else config.raw("mtp_layer_types", None)
    kinds = kinds or [KINDS[1]] * count
    limits = per_layer(config, "swiglu_limits_shared", layers + count, 0.0)[layers:] if hub else [0.0] * count
    return tuple(
        Head(replace(full if kind == KINDS[0] else sliding, glu=_glu(limit)), layers + i,
             norm="transformer.shared_head.norm", head="transformer.shared_head.output")
        for i, (kind, limit) in enumerate(zip(kinds[:count], limits, strict=False))
    )  # fmt: skip


def read_step3p7(outer: Config) -> Decoder:
    """The text tower: `text_config` has the keys, the tensors of the vision tower are left out."""
    reason = "reads images; a text package computes without it"
    for key in ("vision_config", "image_token_id", "projector_bias", "image_token_len", "patch_token_len"):
        outer.ignore(key, reason)
    config = outer.inner("text_config")
    config.ignore("model_type", "the text tower of step3p7 is read here")
    decoder = read(config)
    config.finish()
    images = (r"(model\.)?(vision_model|vit_large_projector|vit_downsampler|multi_modal_projector)", reason)
    return replace(decoder, ignored=(*decoder.ignored, images), other_names=(NESTED,))


def per_layer(config: Config, key: str, layers: int, default: Any = None) -> list[Any]:
    """A list with at least an entry per layer, or `default` for each."""
    value = config.raw(key, None)
    if value is None and default is not None:
        return [default] * layers
    if not isinstance(value, list) or len(value) < layers:
        raise config.error(f"`{key}` should be a list of at least {layers} entries, one per layer")
    return value[:layers]


def _glu(limit: Any) -> Glu:
    return Glu("silu_clamp", float(limit)) if limit else Glu()


def _sliding(config: Config, full: Layer) -> Layer:
    other = config.inner("attention_other_setting")
    other.expect("attention_type", KINDS[1], "the other kind of layer slides")
    layer = replace(full, heads=other.integer("num_attention_heads"), kv_heads=other.integer("num_attention_groups"),
                    head_dim=other.integer("head_dim", full.head_dim))  # fmt: skip
    other.ignore("true_head_dim", "says head_dim again")
    other.finish()
    return layer


def _sliding_saved(config: Config, full: Layer, kinds: list[str]) -> Layer:
    heads = config.integer("num_sliding_attention_heads", full.heads)
    stated = config.raw("per_layer_config", None) or {}
    found = {entry.get("num_attention_heads", full.heads) for entry in stated.values()}
    if found - {heads}:
        raise config.error(f"`per_layer_config` should give sliding layers {heads} heads, it gives {sorted(found)}")
    return replace(full, heads=heads)


def _ropes(config: Config, kinds: list[str], head_dim: int, context: int) -> tuple[Rope, ...]:
    """Of full layers and of sliding ones, from lists per layer; only the types of `yarn_only_types` are scaled."""
    layers = len(kinds)
    theta, share = (per_layer(config, key, layers) for key in ("rope_theta", "partial_rotary_factors"))
    scaling, only = config.raw("rope_scaling", None), config.raw("yarn_only_types", None) or list(KINDS)
    ropes = []
    for kind in KINDS:
        settings = {(t, p) for t, p, k in zip(theta, share, kinds, strict=True) if k == kind} or {(10000.0, 1.0)}
        if len(settings) != 1:
            raise config.error(f"`rope_theta` and `partial_rotary_factors` should be alike in all layers of {kind}")
        [(one, part)] = settings
        values = {"rope_theta": one, "partial_rotary_factor": part}
        values |= {"rope_scaling": scaling} if scaling and kind in only else {}
        ropes.append(read_rope(Config(values, config.model_type, "rope key"), head_dim, context, partial=1.0))
    return tuple(ropes)


def _ropes_saved(config: Config, head_dim: int, context: int) -> tuple[Rope, ...]:
    parameters = config.inner("rope_parameters")
    ropes = tuple(
        read_rope(Config({"rope_parameters": parameters.raw(kind)}, config.model_type, "rope key"), head_dim, context,
                  partial=1.0)
        for kind in KINDS
    )  # fmt: skip
    parameters.finish()
    return ropes


def _experts(config: Config, layers: int) -> tuple[Experts, frozenset[int]]:
    config.expect("moe_router_activation", "sigmoid", "another router is another model")
    inner, shared = config.integer("moe_intermediate_size"), config.either("share_expert_dim", "share_expert_dims")
    for key in ("moe_layer_offset", "moe_every_n_layer"):
        config.ignore(key, "`moe_layers_enum` decides")
    config.expect("use_rope_layers", [], "published models turn in every layer")
    experts = _named(
        config.integer("moe_num_experts"), config.integer("moe_top_k"), inner, shared,
        config.flag("norm_expert_weight", True), config.number("moe_router_scaling_factor", 1.0),
    )  # fmt: skip
    sparse = config.numbers_in_text("moe_layers_enum", ())
    return experts, frozenset(i for i in sparse if i < layers)


def _experts_saved(config: Config, layers: int) -> tuple[Experts, frozenset[int]]:
    config.ignore("output_router_logits", "chooses what a Python forward returns")
    count = config.either("n_routed_experts", "num_local_experts")
    experts = _named(
        count, config.integer("num_experts_per_tok"), config.integer("moe_intermediate_size"),
        config.integer("share_expert_dim"), True, config.number("moe_router_scaling_factor", 1.0),
    )  # fmt: skip
    kinds = per_layer(config, "mlp_layer_types", layers)
    return experts, frozenset(i for i, kind in enumerate(kinds) if kind == "sparse")


def _named(count: int, top_k: int, inner: int, shared: int, renorm: bool, scale: float) -> Experts:
    return Experts(
        count, top_k, inner, score="sigmoid", renorm=renorm, scale=scale, router="moe.gate",
        select_bias="moe.router_bias", gate="moe.gate_proj.weight", up="moe.up_proj.weight",
        down="moe.down_proj.weight", shared="share_expert.", shared_inner=shared, also=(APART,),
    )  # fmt: skip


def _expect(config: Config, hub: bool) -> None:
    """Flags that every published model has at the same value."""
    wanted: dict[str, Any] = {
        "att_impl_type": "GQA", "need_fp32_gate": True, "use_head_wise_attn_gate": True, "use_moe": True,
        "use_moe_router_bias": True, "use_qk_norm": True, "zero_centered": True, "sink": False, "use_sink": False,
        "attention_bias": False, "mlp_bias": False, "hidden_act": "silu",
    }  # fmt: skip
    for key, value in wanted.items():
        config.expect(key, value, "published models have it so; another one is another model")
    config.ignore("max_seq_len", "max_position_embeddings counts")
    config.expect("query_pre_attn_scalar", config.raw("head_dim"), "scores are divided by the root of head_dim")
