"""`gemma3_text`: Gemma 3 (text), and the text tower of `gemma3` (towers.py).

Traps, each has been got wrong before:
- all norms are (1 + w), also those of q and k per head; four norms a layer.
- five of six layers see a window and turn with theta 10,000; the sixth sees all and turns with `rope_theta`, scaled.
- scores are divided by the root of `query_pre_attn_scalar`, which is not head_dim in the 27B.
- embeddings are multiplied by sqrt(hidden), rounded to the type of the weights: 62 and not 61.97 in bf16.
- the activation is tanh-gelu; embeddings are tied.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from datong.importer.config import Config
from datong.importer.models.decoder import Decoder, Glu, Layer, Names, read_sizes
from datong.importer.rope import Rope, read_rope

NAMES = Names(
    attn_out_norm="post_attention_layernorm", mlp_norm="pre_feedforward_layernorm",
    mlp_out_norm="post_feedforward_layernorm",
)  # fmt: skip
LOCAL, GLOBAL = "sliding_attention", "full_attention"


def read(config: Config) -> Decoder:
    """Defaults: transformers Gemma3TextConfig."""
    if config.raw("hidden_activation", None) is None:
        config.expect("hidden_act", "gelu_pytorch_tanh", "the gate of this family is tanh-gelu")
    config.expect("hidden_activation", "gelu_pytorch_tanh", "the gate of this family is tanh-gelu")
    config.ignore("hidden_act", "`hidden_activation` counts")
    config.ignore("cache_implementation", "chooses a cache of Python")
    for key, default in (("vocab_size", 262208), ("num_attention_heads", 8), ("hidden_size", 2304),
                         ("num_hidden_layers", 26)):  # fmt: skip
        config.default(key, default)
    s = read_sizes(config, kv_heads=4, head_dim=256, activation="", inner=9216)
    for key in ("final_logit_softcapping", "attn_logit_softcapping"):
        config.expect(key, None, "published models have none")
    config.expect("use_bidirectional_attention", False, "text is read from left to right")
    window = config.integer("sliding_window", 4096)
    bias = config.flag("attention_bias", False)
    context = config.integer("max_position_embeddings", 131072)
    local = Layer(s.heads, s.kv_heads, s.head_dim, s.inner, window, rope=1, glu=Glu("gelu_tanh"))
    full = Layer(s.heads, s.kv_heads, s.head_dim, s.inner, rope=0, glu=Glu("gelu_tanh"))
    return Decoder(
        s.vocab, s.hidden, tuple(local if kind == LOCAL else full for kind in _kinds(config, s.layers)),
        eps=config.number("rms_norm_eps", 1e-6), tied=config.flag("tie_word_embeddings", True),
        ropes=_ropes(config, s.head_dim, context), context=context, qkv_bias=bias, o_bias=bias, qk_norm="head",
        norm_offset=1.0, embed_scale=_embed_scale(config, s.hidden),
        attn_scale=1 / math.sqrt(config.number("query_pre_attn_scalar", 256)), names=NAMES,
    )  # fmt: skip


def _kinds(config: Config, layers: int) -> list[str]:
    pattern = config.integer("sliding_window_pattern", config.integer("_sliding_window_pattern", 6))
    kinds = config.raw("layer_types", None) or [GLOBAL if (i + 1) % pattern == 0 else LOCAL for i in range(layers)]
    if not isinstance(kinds, list) or len(kinds) != layers or not all(kind in (LOCAL, GLOBAL) for kind in kinds):
        raise config.error(f"`layer_types` should have {layers} entries, each `{LOCAL}` or `{GLOBAL}`")
    return kinds


def _ropes(config: Config, head_dim: int, context: int) -> tuple[Rope, Rope]:
    """Of layers that see all and of those with a window: nested by kind (transformers 5), or flat."""
    nested = config.raw("rope_parameters", None)
    if isinstance(nested, dict) and (LOCAL in nested or GLOBAL in nested):
        if set(nested) - {LOCAL, GLOBAL}:
            raise config.error(f"`rope_parameters` should have `{LOCAL}` and `{GLOBAL}` and nothing else")
        values: list[dict[str, Any]] = [{"rope_parameters": nested.get(kind)} for kind in (GLOBAL, LOCAL)]
    else:
        flat = {"rope_theta": config.number("rope_theta", 1e6), "rope_scaling": config.raw("rope_scaling", nested)}
        values = [flat, {"rope_theta": config.number("rope_local_base_freq", 10000.0)}]
    inner = [Config(one, config.model_type, "rope key") for one in values]
    return read_rope(inner[0], head_dim, context, 1e6), read_rope(inner[1], head_dim, context, 1e4)


def _embed_scale(config: Config, hidden: int) -> float:
    """The root, rounded to bf16 where the weights are bf16, as the model was trained. To nearest, ties to even."""
    root = np.float32(math.sqrt(hidden))
    kind = config.raw("torch_dtype", None) or config.raw("dtype", None)
    if kind != "bfloat16":
        return float(root)
    bits = int(root.view(np.uint32))
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16
    return float(np.uint32(bits).view(np.float32))
