"""What a pre-norm decoder can be, as data: families differ in it, layers.py builds the graph of it.

x = embedding[ids]; per layer x = x + o(attention(rope(q), rope(k), v)) and x = x + mlp(x), each of norm(x), the mlp
being down(glu(gate, up)) or a mixture of such experts; logits = head(norm(x)).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from datong.importer.config import REQUIRED, Config
from datong.importer.models.mixers import Delta, Lightning, Residual
from datong.importer.rope import Rope
from datong.importer.show import show
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
    attn_out_norm: str = ""  # sandwich: norms of what attention and MLP give, before the residual
    mlp_out_norm: str = ""
    attn: str = "self_attn."
    q: str = "q_proj"
    k: str = "k_proj"
    v: str = "v_proj"
    o: str = "o_proj"
    qkv: str = ""  # one packed matrix instead of q, k, v
    q_norm: str = "q_norm"
    k_norm: str = "k_norm"
    q_in: str = ""  # queries through a narrow matrix first: its name, and that of the norm between
    q_in_norm: str = ""
    gate_heads: str = ""  # a gate per head on what attention gives
    sinks: str = ""
    mlp: str = "mlp."
    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"
    gate_up: str = ""  # one matrix instead of gate and up, the gate's rows first


@dataclass(frozen=True)
class Glu:
    """A kind of spec/ops.py `glu` with its numbers."""

    kind: str = "silu"
    limit: float = 0.0
    alpha: float = 0.0


@dataclass(frozen=True)
class Stacks:
    """How experts may be stored as well; fields as in Experts."""

    gate: str
    up: str
    down: str
    order: str = "split"


SINGLE = Stacks(*(f"mlp.experts.{{}}.{part}_proj.weight" for part in ("gate", "up", "down")))
HALVES = Stacks("mlp.experts.gate_up_proj", "", "mlp.experts.down_proj", "halves")


@dataclass(frozen=True)
class Experts:
    """A mixture of experts in the place of the MLP. Names follow the layer's prefix."""

    count: int
    top_k: int
    inner: int
    score: str = "softmax"
    renorm: bool = True
    scale: float = 1.0
    groups: int = 1
    top_groups: int = 1
    glu: Glu = field(default_factory=Glu)
    router: str = "mlp.gate"
    router_bias: bool = False
    select_bias: str = ""  # name of a vector [count] that helps to choose, and does not weigh
    gate: str = "mlp.experts.{}.gate_proj.weight"  # with {}: a tensor each [out, in]; without: a stack
    up: str = "mlp.experts.{}.up_proj.weight"  # empty: inside `gate`, in `order`
    down: str = "mlp.experts.{}.down_proj.weight"
    order: str = "split"
    also: tuple[Stacks, ...] = ()  # where the checkpoint has no `gate`: tools that quantise take stacks apart
    swapped: bool = False  # stacks are stored [count, in, out]
    gate_bias: str = ""
    up_bias: str = ""
    down_bias: str = ""
    shared: str = ""  # prefix of an MLP that every token passes: `mlp.shared_experts.`
    shared_inner: int = 0
    shared_glu: Glu = field(default_factory=Glu)
    shared_gate: str = ""  # a matrix [1, hidden] whose sigmoid weighs the shared MLP


@dataclass(frozen=True)
class Latent:
    """Widths, in channels, of attention whose keys and values come from one narrow vector per token (latent.py)."""

    q_rank: int  # of the queries' own narrow vector; 0: queries come from `q_proj` at once
    kv_rank: int
    plain: int  # of a head of q and k: not turned by positions
    rope: int  # of a head of q and k: turned; the key's are shared by all heads
    value: int  # of a head of v


@dataclass(frozen=True)
class Sparse:
    """Small heads choose which keys attention sees (sparse.py). Names follow the prefix of the attention's tensors."""

    heads: int
    dim: int
    top_k: int  # blocks that a query sees
    kind: str  # of spec/ops.py select_keys
    groups: int = 1
    block: int = 1  # keys
    local: int = 0
    scale: float = 1.0
    q: str = "indexer.wq_b"
    k: str = "indexer.wk"
    narrow: bool = True  # queries are made from the narrow vector of latent attention
    k_layer_norm: str = "indexer.k_norm"
    weights: str = "indexer.weights_proj"
    q_norm: str = ""  # RMSNorms
    k_norm: str = ""


@dataclass(frozen=True)
class Layer:
    """What may differ from layer to layer."""

    heads: int
    kv_heads: int
    head_dim: int
    inner: int  # of the dense MLP
    window: int = 0  # keys; 0: all
    rope: int | None = 0  # which of Decoder.ropes; None: positions do not turn q and k
    glu: Glu = field(default_factory=Glu)
    experts: Experts | None = None
    sparse: Sparse | None = None
    mixer: Delta | Lightning | None = None  # a state in the place of attention
    attn_residual: Residual | None = None
    mlp_residual: Residual | None = None


@dataclass(frozen=True)
class Head:
    """A head for speculation (speculation.py): a layer and what stands around it. Names follow the layer's prefix."""

    layer: Layer
    index: int  # of the prefix: heads follow the last layer
    embed_norm: str = "enorm"
    hidden_norm: str = "hnorm"
    project: str = "eh_proj"
    norm: str = "shared_head.norm"
    head: str = "shared_head.head"  # absent in the checkpoint: the model's own


@dataclass(frozen=True)
class Decoder:
    """One model of a family: sizes and flags, all checked."""

    vocab: int
    hidden: int
    layers: tuple[Layer, ...]
    eps: float
    tied: bool
    ropes: tuple[Rope, ...]
    context: int = 0  # tokens; 0: as the first rope says
    qkv_bias: bool = False
    o_bias: bool = False
    qkv_whole: bool = False  # rows of a packed matrix: all of q, all of k, all of v; else per key-value head
    mlp_bias: bool = False
    qk_norm: str = ""  # RMSNorm of q and k before rope: `head`, `whole` width, or `halves` of each head
    q_rank: int = 0  # width between q_in and q
    q_gate: bool = False  # beside each head of q lies a gate on what attention gives
    latent: Latent | None = None  # q, k and v by way of narrow vectors
    interleaved: bool = False  # rope turns neighbours
    norm_offset: float = 0.0  # 1: norm weights are stored less 1
    embed_scale: float = 0.0  # 0: none
    attn_scale: float = 0.0  # of the scores; 0: 1 / sqrt(head_dim)
    slopes: tuple[float, ...] = ()  # per head, for `bias`
    bias: str = "none"
    names: Names = field(default_factory=Names)
    other_names: tuple[Names, ...] = ()  # other spellings; the first whose embedding the checkpoint has counts
    heads: tuple[Head, ...] = ()  # for speculation; those that the checkpoint lacks are left out
    ignored: tuple[tuple[str, str], ...] = ()  # (regular expression of tensor names, reason)


def contradiction(d: Decoder) -> str:
    """What is wrong with the numbers of experts, whatever keys said them; empty: nothing."""
    for e in {layer.experts for layer in d.layers if layer.experts is not None}:
        if not 1 <= e.top_groups <= e.groups or e.count % e.groups:
            return f"{e.count} experts cannot be {e.groups} groups, of which a token uses {e.top_groups}"
        if e.top_k > e.count // e.groups * e.top_groups:
            which = f"{e.top_groups} of {e.groups} groups of " if e.groups > 1 else ""
            return f"a token cannot use {e.top_k} experts, there are {which}{e.count // e.groups}"
    return ""


def uniform(
    *,
    layers: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    inner: int,
    rope: Rope,
    windows: tuple[int, ...] = (),
    **flags: Any,
) -> Decoder:
    """A decoder whose layers are alike, but for their windows (keys per layer, 0: all; empty: all of them)."""
    each = (Layer(heads, kv_heads, head_dim, inner, window) for window in windows or (0,) * layers)
    return Decoder(layers=tuple(each), ropes=(rope,), **flags)


@dataclass(frozen=True)
class BuiltHead:
    """The graph of a head for speculation: `input_ids`, `hidden` -> `logits`, `hidden_out`."""

    model: ir.Model
    caches: tuple[CacheSpec, ...]
    weights: frozenset[str]  # those that the model itself does not use


@dataclass(frozen=True)
class Built:
    """A model as graph, with what the manifest wants to know."""

    model: ir.Model
    family: str
    caches: tuple[CacheSpec, ...]
    vocab_size: int
    context_length: int
    ignored_keys: dict[str, str]
    heads: tuple[BuiltHead, ...] = ()  # for speculation


def heads_of(config: Config, key: str, layers: int, layer: Layer, **names: str) -> tuple[Head, ...]:
    """As many heads as config key `key` says; their tensors follow those of the last layer."""
    count = config.integer(key, 0, minimum=0, maximum=64)
    return tuple(Head(layer, layers + i, **names) for i in range(count))


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


def read_sizes(
    config: Config,
    kv_heads: int | None = None,
    head_dim: int | None = None,
    activation: str = "silu",
    inner: Any = REQUIRED,
) -> Sizes:
    """Read and check the common sizes; checks `hidden_act` on the way.

    Args:
        config: of the model.
        kv_heads: the family's default where `num_key_value_heads` is absent; None: as many as query heads.
            Null always means that.
        activation: what `hidden_act` must be; empty: the family reads it.
        head_dim: the family's default where `head_dim` is absent; None: hidden / heads. Null always means that.
        inner: the family's default where `intermediate_size` is absent.

    Raises:
        ConfigError: a size is missing, or they do not go together.
    """
    if activation:
        found = config.text("hidden_act", activation)
        if found not in {activation, *(("swish",) if activation == "silu" else ())}:
            raise config.error(f"config key `hidden_act` should be `{activation}`, it is {show(found)}")
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
    inner, layers = config.integer("intermediate_size", inner), config.integer("num_hidden_layers", maximum=MAX_LAYERS)
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
