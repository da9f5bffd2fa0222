"""`qwen3_next`: Qwen3-Next-80B-A3B. Three layers of four have the gated delta rule in the place of attention.

Traps, each has been got wrong before:
- norms are (1 + w), those of q and k per head too, but for the one behind the delta rule (`linear_attn.norm`).
- `q_proj` has two rows blocks per head: q, then a gate whose sigmoid multiplies what attention gives.
- `in_proj_qkvz` and `in_proj_ba` are grouped by key head: q, k, then v and z of its group; b before a.
- q and k of the delta rule are divided by their length with eps 1e-6 inside the root; only q is scaled.
- a quarter of a head rotates (`partial_rotary_factor` absent means 0.25).
- the shared expert is weighed by a sigmoid; the weights of the chosen ones are renormalised unless `norm_topk_prob`
  says otherwise.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from datong.importer.config import REQUIRED, Config
from datong.importer.models.decoder import HALVES, Decoder, Experts, Layer, read_sizes
from datong.importer.models.mixers import Delta
from datong.importer.rope import read_rope
from datong.importer.show import show

KINDS = ("linear_attention", "full_attention")
MTP = "weights for speculation; this family computes the next token without them"


def read(config: Config) -> Decoder:
    """Defaults: transformers Qwen3NextConfig."""
    experts = read_experts(config, config.either("num_experts", "num_local_experts", 512), 10)
    dense, step = config.integers("mlp_only_layers", ()), config.integer("decoder_sparse_step", 1)
    decoder = read_hybrid(config, kv_heads=2, grouped=True, inner=5632)
    layers = tuple(
        layer if i in dense or (i + 1) % step else replace(layer, experts=experts)
        for i, layer in enumerate(decoder.layers)
    )
    return replace(decoder, layers=layers)


def read_experts(config: Config, count: int, top_k: int) -> Experts:
    """Of the families that name them as Qwen3-Next does: a tensor per expert, and a shared one with a gate."""
    config.ignore("output_router_logits", "chooses what a Python forward returns")
    return Experts(
        count, config.integer("num_experts_per_tok", top_k), config.integer("moe_intermediate_size", 512),
        renorm=config.flag("norm_topk_prob", True), shared="mlp.shared_expert.",
        shared_inner=config.integer("shared_expert_intermediate_size", 512), shared_gate="mlp.shared_expert_gate",
        also=(HALVES,),
    )  # fmt: skip


def read_hybrid(config: Config, kv_heads: int, grouped: bool, inner: Any = REQUIRED) -> Decoder:
    """What Qwen3-Next and Qwen3.5 share, with dense MLPs: layers of two kinds, gates, norms, a quarter of a rope."""
    s = read_sizes(config, kv_heads=kv_heads, head_dim=256, inner=inner)
    bias = config.flag("attention_bias", False)
    _expect(config)
    mixer = _delta(config, grouped)
    full = Layer(s.heads, s.kv_heads, s.head_dim, s.inner)
    kinds = _kinds(config, s.layers)
    context = config.integer("max_position_embeddings", 32768)
    return Decoder(
        s.vocab, s.hidden,
        layers=tuple(full if kind == KINDS[1] else replace(full, mixer=mixer) for kind in kinds),
        eps=config.number("rms_norm_eps", 1e-6), tied=config.flag("tie_word_embeddings", False),
        ropes=(read_rope(config, s.head_dim, context, partial=0.25, axes=not grouped),), qkv_bias=bias, o_bias=bias,
        qk_norm="head", q_gate=True, norm_offset=1.0, ignored=((r"(model\.)?mtp\.", MTP),),
    )  # fmt: skip


def _expect(config: Config) -> None:
    """Keys of published configs that all have at the same value."""
    config.expect("attn_output_gate", True, "published models gate what attention gives")
    config.expect("use_sliding_window", False, "layers see everything, or keep a state")
    config.expect("mamba_ssm_dtype", "float32", "states are kept in f32")
    gate = config.text("output_gate_type", "silu")
    if gate not in ("silu", "swish"):
        raise config.error(f"config key `output_gate_type` should be `silu` or `swish`, it is {show(gate)}")
    for key in ("mtp_num_hidden_layers", "mtp_use_dedicated_embeddings", "unsloth_fixed_mtp"):
        config.ignore(key, MTP)


def _delta(config: Config, grouped: bool) -> Delta:
    keys, values = config.integer("linear_num_key_heads", 16), config.integer("linear_num_value_heads", 32)
    if values % keys:
        raise config.error(f"`linear_num_value_heads` {values} should be a multiple of `linear_num_key_heads` {keys}")
    return Delta(
        keys, values, config.integer("linear_key_head_dim", 128), config.integer("linear_value_head_dim", 128),
        config.integer("linear_conv_kernel_dim", 4, minimum=2, maximum=1024), grouped,
    )  # fmt: skip


def _kinds(config: Config, layers: int) -> list[str]:
    """`layer_types`, or every `full_attention_interval`-th layer with attention."""
    interval = config.integer("full_attention_interval", 4)
    types = config.raw("layer_types", None)
    if types is None:
        return [KINDS[(i + 1) % interval == 0] for i in range(layers)]
    if not isinstance(types, list) or len(types) != layers or not all(t in KINDS for t in types):
        raise config.error(f"`layer_types` should have {layers} entries, each {' or '.join(f'`{k}`' for k in KINDS)}")
    return types
