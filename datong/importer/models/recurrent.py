"""The graph of what stands in the place of attention: the gated delta rule, lightning attention."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from datong.importer.graph import GraphBuilder
from datong.importer.models.decoder import Decoder
from datong.importer.models.mixers import Delta, Lightning
from datong.spec.program import CacheSpec

# Not the config's: `l2norm` of the published code, transformers 5.23 `torch_chunk_gated_delta_rule`.
UNIT_EPS = 1e-6


def mix(b: GraphBuilder, d: Decoder, mixer: Delta | Lightning, prefix: str, h: ir.Value) -> ir.Value:
    """[batch, seq, hidden] -> the same: what the layer would otherwise have of attention and its `o_proj`."""
    if isinstance(mixer, Delta):
        return _delta(b, d, mixer, f"{prefix}{mixer.prefix}", h)
    return _lightning(b, d, mixer, f"{prefix}{mixer.prefix}", h)


# ---- gated delta rule ---------------------------------------------------------------------------------------------


def _delta(b: GraphBuilder, d: Decoder, m: Delta, prefix: str, h: ir.Value) -> ir.Value:
    keys, values, layer = m.k_heads * m.k_dim, m.v_heads * m.v_dim, _layer(b)
    mixed, z, beta, a = _grouped(b, m, prefix, h) if m.grouped else _separate(b, m, prefix, h)
    mixed = _conv(b, m, prefix, mixed, layer)
    q, k, v = b.slices(mixed, 2 * keys + values, [keys, keys, values], ["q", "k", "v"])
    parameters = [b.weight(f"{prefix}{name}", (m.v_heads,)) for name in ("A_log", "dt_bias")]
    attributes = {"num_k_heads": m.k_heads, "num_v_heads": m.v_heads, "scale": m.k_dim**-0.5, "eps": UNIT_EPS}
    state = CacheSpec(layer, "recurrent", m.v_heads, m.k_dim, m.v_dim)
    y = b.with_state("GatedDelta", [q, k, v, a, beta, *parameters], state, values, attributes, "delta")
    y = b.head_norm(y, f"{prefix}norm.weight", d.eps, m.v_dim, "out_norm")
    return b.linear(b.silu_glu(z, y, "gated"), f"{prefix}out_proj.weight", d.hidden, "out_proj")


Four = tuple[ir.Value, ir.Value, ir.Value, ir.Value]


def _separate(b: GraphBuilder, m: Delta, prefix: str, h: ir.Value) -> Four:
    """[q, k, v], z, b, a."""
    values = m.v_heads * m.v_dim
    widths = {"qkv": 2 * m.k_heads * m.k_dim + values, "z": values, "b": m.v_heads, "a": m.v_heads}
    mixed, z, beta, a = (b.linear(h, f"{prefix}in_proj_{n}.weight", w, f"{n}_proj") for n, w in widths.items())
    return mixed, z, beta, a


def _grouped(b: GraphBuilder, m: Delta, prefix: str, h: ir.Value) -> Four:
    """[q, k, v], z, b, a of matrices whose rows go per key head: its q, k, then v and z, or b and a, of its group."""
    group = m.v_heads // m.k_heads
    wide = 2 * m.k_dim + 2 * group * m.v_dim
    both = b.linear(h, f"{prefix}in_proj_qkvz.weight", m.k_heads * wide, "qkvz_proj")
    parts = [m.k_dim, m.k_dim, group * m.v_dim, group * m.v_dim]
    q, k, v, z = b.slices(both, wide, parts, ["q_in", "k_in", "v_in", "z"])
    rates = b.linear(h, f"{prefix}in_proj_ba.weight", 2 * m.v_heads, "ba_proj")
    beta, a = b.slices(rates, 2 * group, [group, group], ["beta", "a"])
    return b.joined([b.joined([q, k], 1, "qk_in"), v], 1, "qkv_in"), z, beta, a


def _conv(b: GraphBuilder, m: Delta, prefix: str, x: ir.Value, layer: int) -> ir.Value:
    channels = 2 * m.k_heads * m.k_dim + m.v_heads * m.v_dim
    stored = b.weight(f"{prefix}conv1d.weight", (channels, 1, m.taps))
    matrix = b.node("Reshape", [stored, b.integers(channels, m.taps)], (channels, m.taps), "conv.weight")
    state = CacheSpec(layer, "conv", 1, channels, m.taps - 1)
    attributes = {"kind": "silu", "channels": channels}
    return b.with_state("CausalConv", [x, matrix, None], state, channels, attributes, "conv")


# ---- lightning attention ------------------------------------------------------------------------------------------


def _lightning(b: GraphBuilder, d: Decoder, m: Lightning, prefix: str, h: ir.Value) -> ir.Value:
    width, dim, layer = m.heads * m.dim, m.dim, _layer(b)
    packed = b.silu(b.linear(h, f"{prefix}qkv_proj.weight", 3 * width, "qkv_proj"), "qkv")
    q, k, v = b.slices(packed, 3 * dim, [dim, dim, dim], ["q", "k", "v"])
    slopes = b.constant(f"const.slopes.layer{layer}", np.array(m.slopes, np.float32))
    attributes = {"num_heads": m.heads, "scale": 1.0}
    state = CacheSpec(layer, "recurrent", m.heads, dim, dim)
    y = b.with_state("LinearAttention", [q, k, v, slopes], state, width, attributes, "lightning")
    y = b.rms_norm(y, f"{prefix}norm.weight", m.norm_eps, "out_norm")
    gate = b.sigmoid(b.linear(h, f"{prefix}output_gate.weight", width, "gate_proj"), "gate")
    return b.linear(b.mul(gate, y, "gated"), f"{prefix}out_proj.weight", d.hidden, "out_proj")


def _layer(b: GraphBuilder) -> int:
    return len(b.caches) if b.layer is None else b.layer
