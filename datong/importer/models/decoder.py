"""The pre-norm decoder that the dense families share: what they differ in is data.

x = embedding[ids]; per layer x = x + o(attention(rope(q), rope(k), v)) and x = x + down(silu(gate) * up), each of
norm(x); logits = head(norm(x)).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import onnx_ir as ir

from datong.importer.config import Config
from datong.importer.graph import I64, GraphBuilder
from datong.importer.rope import Rope
from datong.importer.show import show
from datong.importer.weights import WeightMap
from datong.spec.program import CacheSpec

# Far above any model; so that a config of a few bytes cannot ask for gigabytes of tables.
MAX_LAYERS = 10_000
MAX_HEAD_DIM = 65_536


@dataclass(frozen=True)
class Names:
    """Where a family keeps its tensors; the defaults are Llama's. Names inside a layer follow `layer`."""

    embed: str = "model.embed_tokens"
    layer: str = "model.layers.{}."
    norm: str = "model.norm"
    head: str = "lm_head"
    attn_norm: str = "input_layernorm"
    mlp_norm: str = "post_attention_layernorm"
    attn: str = "self_attn."
    q: str = "q_proj"
    k: str = "k_proj"
    v: str = "v_proj"
    o: str = "o_proj"
    qkv: str = ""  # one packed matrix instead of q, k, v
    q_norm: str = "q_norm"
    k_norm: str = "k_norm"
    mlp: str = "mlp."
    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"


@dataclass(frozen=True)
class Decoder:
    """One model of a family: sizes and flags, all checked."""

    vocab: int
    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    eps: float
    tied: bool
    rope: Rope
    windows: tuple[int, ...] = ()  # per layer, in keys; 0: all. Empty: all layers see everything
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False  # RMSNorm per head, before rope
    names: Names = field(default_factory=Names)


@dataclass(frozen=True)
class Built:
    """A model as graph, with what the manifest wants to know."""

    model: ir.Model
    family: str
    caches: tuple[CacheSpec, ...]
    vocab_size: int
    context_length: int
    ignored_keys: dict[str, str]


Reader = Callable[[Config], Decoder]


@dataclass(frozen=True)
class Sizes:
    """The keys that all families spell alike."""

    vocab: int
    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int


def read_sizes(config: Config, kv_heads: int | None = None, head_dim: int | None = None) -> Sizes:
    """Read and check the common sizes; checks `hidden_act` on the way.

    Args:
        config: of the model.
        kv_heads: the family's default where `num_key_value_heads` is absent; None: as many as query heads.
            Null always means that.
        head_dim: the family's default where `head_dim` is absent; None: hidden / heads. Null always means that.

    Raises:
        ConfigError: a size is missing, or they do not go together.
    """
    activation = config.text("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise config.error(f"config key `hidden_act` should be `silu`, it is {show(activation)}")
    hidden, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    kv = config.integer("num_key_value_heads", heads) if _decided(config, "num_key_value_heads", kv_heads) else kv_heads
    if _decided(config, "head_dim", head_dim):
        if config.raw("head_dim", None) is None and hidden % heads:
            raise config.error(f"`hidden_size` {hidden} should be a multiple of `num_attention_heads` {heads}")
        head_dim = config.integer("head_dim", hidden // heads)
    assert kv is not None and head_dim is not None
    if heads % kv:
        raise config.error(f"`num_attention_heads` {heads} should be a multiple of `num_key_value_heads` {kv}")
    if head_dim % 2 or head_dim > MAX_HEAD_DIM:
        raise config.error(f"the size of a head should be even, for rope, and at most {MAX_HEAD_DIM}; it is {head_dim}")
    inner, layers = config.integer("intermediate_size"), config.integer("num_hidden_layers", maximum=MAX_LAYERS)
    return Sizes(config.integer("vocab_size"), hidden, inner, layers, heads, kv, head_dim)


def _decided(config: Config, key: str, default: int | None) -> bool:
    """Does the config decide, or the absence of a family default? Null is a decision, absence is not."""
    absent = object()
    return default is None or config.raw(key, absent) is not absent


def read_windows(config: Config, layers: int, default_from: int = 28) -> tuple[int, ...]:
    """Qwen's keys for sliding windows -> window per layer, 0: none.

    `layer_types` decides where present; else the layers from `max_window_layers` (absent: `default_from`) on slide.
    Without `use_sliding_window` no layer slides, whatever `sliding_window` says.
    """
    used = config.flag("use_sliding_window", False)
    size = config.raw("sliding_window", 4096)
    window = config.integer("sliding_window", 4096) if used and size is not None else 0
    first = config.integer("max_window_layers", default_from, minimum=0)
    types = config.raw("layer_types", None)
    if types is None:
        return tuple(window if i >= first else 0 for i in range(layers))
    known = ("full_attention", "sliding_attention")
    if not isinstance(types, list) or len(types) != layers or not all(t in known for t in types):
        raise config.error(f"`layer_types` should have {layers} entries, each `full_attention` or `sliding_attention`")
    if "sliding_attention" in types and not window:
        raise config.error("`layer_types` has `sliding_attention`, but no sliding window is in use")
    return tuple(window if t == "sliding_attention" else 0 for t in types)


def build(family: str, config: Config, decoder: Decoder, weights: WeightMap) -> Built:
    """The graph of `decoder` over `weights`. Raises CheckpointError for a tensor that is missing or misshapen."""
    d, n, b = decoder, decoder.names, GraphBuilder(family, weights)
    ids = b.input("input_ids", I64, ("batch", "seq"))
    positions = b.input("position_ids", I64, ("batch", "seq"))
    table = b.rope_table(positions, d.rope, "rope")
    x = b.embedding(ids, f"{n.embed}.weight", d.vocab, d.hidden, "embed")
    for i in range(d.layers):
        with b.scope(f"layers.{i}"):
            x = _layer(b, d, i, x, table)
    x = b.rms_norm(x, f"{n.norm}.weight", d.eps, "norm")
    head = n.embed if d.tied else n.head
    b.output(b.linear(x, f"{head}.weight", d.vocab, "head"), "logits")
    weights.ignore(
        lambda name: name.endswith((".rotary_emb.inv_freq", ".rope.inv_freq")),
        "a table that the graph computes from the config",
    )
    if d.tied:
        weights.ignore(lambda name: name == f"{n.head}.weight", "tied: the embedding takes its place")
    return Built(b.finish(), family, tuple(b.caches), d.vocab, d.rope.context_length, dict(config.ignored))


def _layer(b: GraphBuilder, d: Decoder, i: int, x: ir.Value, table: tuple[ir.Value, ir.Value]) -> ir.Value:
    """One decoder layer: [batch, seq, hidden] -> the same."""
    n, prefix = d.names, d.names.layer.format(i)
    with b.scope("attn"):
        h = b.rms_norm(x, f"{prefix}{n.attn_norm}.weight", d.eps, "norm")
        q, k, v = _packed_qkv(b, d, prefix, h) if n.qkv else _qkv(b, d, prefix, h)
        if d.qk_norm:
            q = b.head_norm(q, f"{prefix}{n.attn}{n.q_norm}.weight", d.eps, d.head_dim, "q_norm")
            k = b.head_norm(k, f"{prefix}{n.attn}{n.k_norm}.weight", d.eps, d.head_dim, "k_norm")
        q, k = b.rope(q, table, d.heads, "q_rope"), b.rope(k, table, d.kv_heads, "k_rope")
        y = b.attention(q, k, v, d.heads, d.kv_heads, d.windows[i] if d.windows else 0, "attention")
        x = b.add(x, _linear(b, f"{prefix}{n.attn}{n.o}", y, d.hidden, d.o_bias, "o_proj"), "residual")
    with b.scope("mlp"):
        h = b.rms_norm(x, f"{prefix}{n.mlp_norm}.weight", d.eps, "norm")
        gate = _linear(b, f"{prefix}{n.mlp}{n.gate}", h, d.inner, d.mlp_bias, "gate_proj")
        up = _linear(b, f"{prefix}{n.mlp}{n.up}", h, d.inner, d.mlp_bias, "up_proj")
        y = b.silu_glu(gate, up, "glu")
        return b.add(x, _linear(b, f"{prefix}{n.mlp}{n.down}", y, d.hidden, d.mlp_bias, "down_proj"), "residual")


def _qkv(b: GraphBuilder, d: Decoder, prefix: str, h: ir.Value) -> list[ir.Value]:
    n = d.names
    rows = ((n.q, d.heads, "q_proj"), (n.k, d.kv_heads, "k_proj"), (n.v, d.kv_heads, "v_proj"))
    return [_linear(b, f"{prefix}{n.attn}{w}", h, c * d.head_dim, d.qkv_bias, name) for w, c, name in rows]


def _packed_qkv(b: GraphBuilder, d: Decoder, prefix: str, h: ir.Value) -> list[ir.Value]:
    """Rows of the packed matrix go per key-value head: its query heads, then k, then v."""
    group = d.heads // d.kv_heads
    rows = (d.heads + 2 * d.kv_heads) * d.head_dim
    packed = _linear(b, f"{prefix}{d.names.attn}{d.names.qkv}", h, rows, d.qkv_bias, "qkv_proj")
    lengths = [group * d.head_dim, d.head_dim, d.head_dim]
    return b.slices(packed, (group + 2) * d.head_dim, lengths, ["q", "k", "v"])


def _linear(b: GraphBuilder, weight: str, x: ir.Value, out: int, bias: bool, name: str) -> ir.Value:
    return b.linear(x, f"{weight}.weight", out, name, f"{weight}.bias" if bias else "")
