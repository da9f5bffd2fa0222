"""Attention over chosen keys (DeepSeek-V3.2, MiniMax-M3): the graph of the small heads that choose."""

from __future__ import annotations

import onnx_ir as ir

from datong.importer.graph import GraphBuilder
from datong.importer.models.decoder import Decoder, Layer, Sparse
from datong.spec.program import CacheSpec

# Not the config's: the published code's (transformers 5.23, DeepseekV32Indexer).
LAYER_NORM_EPS = 1e-6


def choose(
    b: GraphBuilder, d: Decoder, s: Sparse, prefix: str, h: ir.Value, narrow: ir.Value | None,
    table: tuple[ir.Value, ir.Value],
) -> ir.Value:  # fmt: skip
    """Which keys each token sees, [batch, seq, groups * top_k], of h [batch, seq, hidden]."""
    with b.scope("index"):
        source = narrow if s.narrow and narrow is not None else h
        q = b.linear(source, f"{prefix}{s.q}.weight", s.heads * s.dim, "q_proj")
        k = b.linear(h, f"{prefix}{s.k}.weight", s.dim, "k_proj")
        if s.k_layer_norm:
            k = b.layer_norm(k, f"{prefix}{s.k_layer_norm}", LAYER_NORM_EPS, "k_norm")
        if s.q_norm:
            q = b.head_norm(q, f"{prefix}{s.q_norm}.weight", d.eps, s.dim, "q_norm", d.norm_offset)
        if s.k_norm:
            k = b.rms_norm(k, f"{prefix}{s.k_norm}.weight", d.eps, "k_norm", d.norm_offset)
        q, k = b.rope(q, table, s.heads, "q_rope"), b.rope(k, table, 1, "k_rope")  # halves, never neighbours
        weights = b.linear(h, f"{prefix}{s.weights}.weight", s.heads, "weights") if s.weights else None
        attributes = {"num_heads": s.heads, "groups": s.groups, "block": s.block, "scale": s.scale,
                      "top_k": s.top_k, "local": s.local, "kind": s.kind}  # fmt: skip
        spec = CacheSpec(_layer(b), "index", 1, s.dim, 0)
        return b.with_keys("SelectKeys", [q, k, weights], spec, s.groups * s.top_k, attributes, "chosen")


def attend(
    b: GraphBuilder, d: Decoder, layer: Layer, s: Sparse, qkv: tuple[ir.Value, ir.Value, ir.Value], chosen: ir.Value
) -> ir.Value:
    """[batch, seq, heads * value dim]."""
    widths = [int(value.shape[-1]) for value in qkv if value.shape is not None]  # type: ignore[arg-type]
    dim, value_dim = widths[1] // layer.kv_heads, widths[2] // layer.kv_heads
    attributes = {"num_heads": layer.heads, "num_kv_heads": layer.kv_heads, "groups": s.groups, "block": s.block,
                  "scale": float(d.attn_scale or dim**-0.5)}  # fmt: skip
    spec = CacheSpec(_layer(b), "full", layer.kv_heads, dim, value_dim)
    width = layer.heads * value_dim
    return b.with_keys("SparseAttention", [*qkv, chosen], spec, width, attributes, "attention")


def _layer(b: GraphBuilder) -> int:
    assert b.layer is not None
    return b.layer
