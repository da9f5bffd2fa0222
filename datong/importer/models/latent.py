"""Multi-head latent attention (DeepSeek-V2 and later): k and v of each head out of one narrow vector per token.

The cache holds that vector and one turned key for all heads, kv_rank + rope channels a token: operator
latent_attention. Where an indexer chooses keys (DeepSeek-V3.2), it makes its queries of the narrow vector of the
queries. A head of q and k is [plain, rope], a head of v has a width of its own.
"""

from __future__ import annotations

import onnx_ir as ir

from datong.importer.graph import GraphBuilder
from datong.importer.models import sparse
from datong.importer.models.decoder import Decoder, Latent, Layer
from datong.spec.program import CacheSpec

# Not the config's: the published code leaves these two norms at their default (transformers 5.23, DeepseekV3Attention).
NARROW_EPS = 1e-6


Table = tuple[ir.Value, ir.Value]


def attend(b: GraphBuilder, d: Decoder, layer: Layer, prefix: str, h: ir.Value, table: Table) -> ir.Value:
    """[batch, seq, heads * value] of h [batch, seq, hidden]. `prefix` is that of the attention's tensors."""
    assert d.latent is not None
    a, heads = d.latent, layer.heads
    q_plain, q_rope, normed = _queries(b, d, a, heads, prefix, h, table)
    latent, k_rope = _rows(b, d, a, prefix, h, table)
    weight = b.weight(f"{prefix}kv_b_proj.weight", (heads * (a.plain + a.value), a.kv_rank))
    chosen = None if layer.sparse is None else sparse.choose(b, d, layer.sparse, prefix, h, normed, table)
    number = len(b.caches) if b.layer is None else b.layer
    spec = CacheSpec(number, "latent", 1, a.kv_rank + a.rope, a.kv_rank)
    attributes = {"num_heads": heads, "plain": a.plain, "scale": float(d.attn_scale or (a.plain + a.rope) ** -0.5)}
    inputs = [b.joined([q_plain, q_rope], heads, "q"), latent, k_rope, weight, chosen]
    return b.with_keys("LatentAttention", inputs, spec, heads * a.value, attributes, "attention")


def _queries(
    b: GraphBuilder, d: Decoder, a: Latent, heads: int, prefix: str, h: ir.Value, table: Table
) -> tuple[ir.Value, ir.Value, ir.Value | None]:
    """Both parts of q, the second turned, and the narrow vector they are made of, if they are."""
    dim = a.plain + a.rope
    normed: ir.Value | None = None
    if a.q_rank:
        narrow = _narrow(b, d, prefix, h, "q_a_proj", a.q_rank)
        normed = b.rms_norm(narrow, f"{prefix}q_a_layernorm.weight", NARROW_EPS, "q_a_norm")
        q = b.linear(normed, f"{prefix}q_b_proj.weight", heads * dim, "q_proj")
    else:
        q = b.linear(h, f"{prefix}q_proj.weight", heads * dim, "q_proj")
    q_plain, q_rope = b.slices(q, dim, [a.plain, a.rope], ["q_plain", "q_unturned"])
    return q_plain, b.rope(q_rope, table, heads, "q_rope", d.interleaved), normed


def _rows(b: GraphBuilder, d: Decoder, a: Latent, prefix: str, h: ir.Value, table: Table) -> tuple[ir.Value, ir.Value]:
    """What keys and values are made of: the normed narrow vector [batch, seq, kv_rank], the turned key [.., rope]."""
    both = _narrow(b, d, prefix, h, "kv_a_proj_with_mqa", a.kv_rank + a.rope)
    latent, shared = b.slices(both, a.kv_rank + a.rope, [a.kv_rank, a.rope], ["latent", "k_unturned"])
    latent = b.rms_norm(latent, f"{prefix}kv_a_layernorm.weight", NARROW_EPS, "kv_a_norm")
    return latent, b.rope(shared, table, 1, "k_rope", d.interleaved)


def _narrow(b: GraphBuilder, d: Decoder, prefix: str, h: ir.Value, weight: str, out: int) -> ir.Value:
    """A projection of h; `d.qkv_bias` is of these alone."""
    name = f"{prefix}{weight}"
    return b.linear(h, f"{name}.weight", out, weight, f"{name}.bias" if d.qkv_bias else "")
