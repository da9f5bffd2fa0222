"""The graph of a decoder: every family's, from the data of decoder.py."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from datong.importer.config import Config
from datong.importer.graph import I64, GraphBuilder
from datong.importer.models import latent, recurrent, sparse
from datong.importer.models.decoder import Built, Decoder, Experts, Glu, Layer, Stacks
from datong.importer.models.mixers import Residual
from datong.importer.weights import WeightMap

Table = tuple[ir.Value, ir.Value]


def build(family: str, config: Config, decoder: Decoder, weights: WeightMap, hidden: bool = False) -> Built:
    """The graph of `decoder` over `weights`; `hidden`: its last normed value is an output too.

    Raises CheckpointError for a tensor that is missing or misshapen.
    """
    d, n, b = decoder, decoder.names, GraphBuilder(family, weights)
    ids = b.input("input_ids", I64, ("batch", "seq"))
    positions = b.input("position_ids", I64, ("batch", "seq"))
    used = sorted({layer.rope for layer in d.layers if layer.rope is not None})
    tables = {i: b.rope_table(positions, d.ropes[i], "rope" if len(d.ropes) == 1 else f"rope.{i}") for i in used}
    x = b.embedding(ids, f"{n.embed}.weight", d.vocab, d.hidden, "embed")
    if d.embed_scale:
        x = b.scale(x, d.embed_scale, "embed.scaled")
    for i, layer in enumerate(d.layers):
        b.layer = i
        with b.scope(f"layers.{i}"):
            prefix, table = n.layer.format(i), None if layer.rope is None else tables[layer.rope]
            x = attention_block(b, d, layer, prefix, x, table)
            x = mlp_block(b, d, layer, prefix, x)
    x = b.rms_norm(x, f"{n.norm}.weight", d.eps, "norm", d.norm_offset)
    head = n.embed if d.tied else n.head
    b.output(b.linear(x, f"{head}.weight", d.vocab, "head"), "logits")
    if hidden:
        b.output(x, "hidden")
    _ignore(d, weights)
    context = d.context or d.ropes[0].context_length
    return Built(b.finish(), family, tuple(b.caches), d.vocab, context, dict(config.ignored))


def _ignore(d: Decoder, weights: WeightMap) -> None:
    weights.ignore(
        lambda name: name.endswith((".rotary_emb.inv_freq", ".rope.inv_freq")),
        "a table that the graph computes from the config",
    )
    if d.tied:
        weights.ignore(lambda name: name == f"{d.names.head}.weight", "tied: the embedding takes its place")
    for pattern, reason in d.ignored:
        weights.ignore(lambda name, found=re.compile(pattern): found.match(name) is not None, reason)  # type: ignore[misc]


# ---- attention ----------------------------------------------------------------------------------------------------


def attention_block(
    b: GraphBuilder, d: Decoder, layer: Layer, prefix: str, x: ir.Value, table: Table | None
) -> ir.Value:
    """[batch, seq, hidden] -> the same, with the residual."""
    n = d.names
    with b.scope("attn"):
        h = b.rms_norm(x, f"{prefix}{n.attn_norm}.weight", d.eps, "norm", d.norm_offset)
        if layer.mixer is not None:
            return _residual(b, layer.attn_residual, x, h, recurrent.mix(b, d, layer.mixer, prefix, h))
        gate: ir.Value | None = None
        attn = f"{prefix}{n.attn}"
        if d.latent is not None and table is not None:
            y = latent.attend(b, d, layer, attn, h, table)
        else:
            q, k, v, gate = _turned_qkv(b, d, layer, prefix, h, table)
            if layer.sparse is not None and table is not None:
                chosen = sparse.choose(b, d, layer.sparse, attn, h, None, table)
                y = sparse.attend(b, d, layer, layer.sparse, (q, k, v), chosen)
            else:
                y = b.attention(
                    q, k, v, layer.heads, layer.kv_heads, layer.window, "attention",
                    scale=d.attn_scale or None, sinks=f"{attn}{n.sinks}" if n.sinks else "",
                    slopes=np.array(d.slopes, np.float32) if d.slopes else None, bias=d.bias,
                )  # fmt: skip
        if n.gate_heads:
            per_head = b.linear(h, f"{prefix}{n.attn}{n.gate_heads}.weight", layer.heads, "gate_proj")
            y = b.scale_groups(y, b.sigmoid(per_head, "gate"), "gated")
        if gate is not None:
            y = b.mul(y, b.sigmoid(gate, "gate"), "gated")
        y = _linear(b, f"{prefix}{n.attn}{n.o}", y, d.hidden, d.o_bias, "o_proj")
        if n.attn_out_norm:
            y = b.rms_norm(y, f"{prefix}{n.attn_out_norm}.weight", d.eps, "out_norm", d.norm_offset)
        return _residual(b, layer.attn_residual, x, h, y)


def _residual(b: GraphBuilder, scales: Residual | None, x: ir.Value, h: ir.Value, y: ir.Value) -> ir.Value:
    """What a block adds its result y to: its input x, or its normed input h, both scaled."""
    if scales is None:
        return b.add(x, y, "residual")
    y = y if scales.beta == 1.0 else b.scale(y, scales.beta, "scaled")
    return b.add(b.scale(h, scales.alpha, "carried"), y, "residual")


def _turned_qkv(
    b: GraphBuilder, d: Decoder, layer: Layer, prefix: str, h: ir.Value, table: Table | None
) -> tuple[ir.Value, ir.Value, ir.Value, ir.Value | None]:
    """Q, k, v, and the gate that lies beside q."""
    n, gate = d.names, None
    q, k, v = _packed_qkv(b, d, layer, prefix, h) if n.qkv else _qkv(b, d, layer, prefix, h)
    if d.q_gate:
        dim = layer.head_dim
        q, gate = b.slices(q, 2 * dim, [dim, dim], ["q", "q_gate"])
    q, k = (_qk_norm(b, d, layer, f"{prefix}{n.attn}", value, part) for value, part in ((q, "q"), (k, "k")))
    if table is not None:
        q = b.rope(q, table, layer.heads, "q_rope", d.interleaved)
        k = b.rope(k, table, layer.kv_heads, "k_rope", d.interleaved)
    return q, k, v, gate


def _qk_norm(b: GraphBuilder, d: Decoder, layer: Layer, prefix: str, x: ir.Value, part: str) -> ir.Value:
    name = d.names.q_norm if part == "q" else d.names.k_norm
    heads = layer.heads if part == "q" else layer.kv_heads
    if d.qk_norm == "head":
        return b.head_norm(x, f"{prefix}{name}.weight", d.eps, layer.head_dim, f"{part}_norm", d.norm_offset)
    if d.qk_norm == "whole":
        return b.rms_norm(x, f"{prefix}{name}.weight", d.eps, f"{part}_norm", d.norm_offset)
    if d.qk_norm == "halves":
        weights = [f"{prefix}{name}.weight", f"{prefix}{name}_hw.weight"]
        return b.half_norms(x, weights, d.eps, heads, f"{part}_norm")
    return x


def _qkv(b: GraphBuilder, d: Decoder, layer: Layer, prefix: str, h: ir.Value) -> list[ir.Value]:
    n = d.names
    source = h
    if n.q_in:
        narrow = b.linear(h, f"{prefix}{n.attn}{n.q_in}.weight", d.q_rank, "q_in")
        source = b.rms_norm(narrow, f"{prefix}{n.attn}{n.q_in_norm}.weight", d.eps, "q_in_norm", d.norm_offset)
    rows = (
        (source, n.q, layer.heads * (2 if d.q_gate else 1), "q_proj"),
        (h, n.k, layer.kv_heads, "k_proj"),
        (h, n.v, layer.kv_heads, "v_proj"),
    )
    width = layer.head_dim
    return [_linear(b, f"{prefix}{n.attn}{w}", x, c * width, d.qkv_bias, name) for x, w, c, name in rows]


def _packed_qkv(b: GraphBuilder, d: Decoder, layer: Layer, prefix: str, h: ir.Value) -> list[ir.Value]:
    """Rows of the packed matrix: q, k and v, whole, or per key-value head: its query heads, then k, then v."""
    rows = (layer.heads + 2 * layer.kv_heads) * layer.head_dim
    packed = _linear(b, f"{prefix}{d.names.attn}{d.names.qkv}", h, rows, d.qkv_bias, "qkv_proj")
    groups = 1 if d.qkv_whole else layer.kv_heads
    lengths = [count // groups * layer.head_dim for count in (layer.heads, layer.kv_heads, layer.kv_heads)]
    return b.slices(packed, rows // groups, lengths, ["q", "k", "v"])


# ---- MLP ----------------------------------------------------------------------------------------------------------


def mlp_block(b: GraphBuilder, d: Decoder, layer: Layer, prefix: str, x: ir.Value) -> ir.Value:
    """[batch, seq, hidden] -> the same, with the residual."""
    n = d.names
    with b.scope("mlp"):
        h = b.rms_norm(x, f"{prefix}{n.mlp_norm}.weight", d.eps, "norm", d.norm_offset)
        if layer.experts is None:
            y = _mlp(b, d, f"{prefix}{n.mlp}", h, layer.inner, layer.glu)
        else:
            y = _experts(b, d, layer.experts, prefix, h)
        if n.mlp_out_norm:
            y = b.rms_norm(y, f"{prefix}{n.mlp_out_norm}.weight", d.eps, "out_norm", d.norm_offset)
        return _residual(b, layer.mlp_residual, x, h, y)


def _mlp(b: GraphBuilder, d: Decoder, prefix: str, h: ir.Value, inner: int, glu: Glu) -> ir.Value:
    n = d.names
    if n.gate_up:
        both = _linear(b, f"{prefix}{n.gate_up}", h, 2 * inner, d.mlp_bias, "gate_up_proj")
        gate, up = b.slices(both, 2 * inner, [inner, inner], ["gate_proj", "up_proj"])
    else:
        gate = _linear(b, f"{prefix}{n.gate}", h, inner, d.mlp_bias, "gate_proj")
        up = _linear(b, f"{prefix}{n.up}", h, inner, d.mlp_bias, "up_proj")
    y = b.glu(gate, up, "glu", glu.kind, glu.limit, glu.alpha)
    return _linear(b, f"{prefix}{n.down}", y, d.hidden, d.mlp_bias, "down_proj")


def _experts(b: GraphBuilder, d: Decoder, e: Experts, prefix: str, h: ir.Value) -> ir.Value:
    e = _as_stored(b, e, prefix)
    router = f"{prefix}{e.router}"
    logits = b.linear(h, f"{router}.weight", e.count, "router", f"{router}.bias" if e.router_bias else "")
    both = e.inner * (1 if e.up else 2)
    vectors = {"select_bias": (e.select_bias, (e.count,)), "gate_bias": (e.gate_bias, (e.count, both)),
               "up_bias": (e.up_bias, (e.count, e.inner)), "down_bias": (e.down_bias, (e.count, d.hidden))}  # fmt: skip
    inputs: dict[str, ir.Value | None] = {
        "x": h,
        "logits": logits,
        "gate": _stack(b, e, prefix, e.gate, (both, d.hidden), "experts.gate"),
        "up": _stack(b, e, prefix, e.up, (e.inner, d.hidden), "experts.up") if e.up else None,
        "down": _stack(b, e, prefix, e.down, (d.hidden, e.inner), "experts.down"),
        **{key: b.weight(f"{prefix}{name}", shape) for key, (name, shape) in vectors.items() if name},
    }
    attributes = {"top_k": e.top_k, "score": e.score, "renorm": int(e.renorm), "scale": float(e.scale),
                  "groups": e.groups, "top_groups": e.top_groups, "order": e.order, "kind": e.glu.kind,
                  "limit": e.glu.limit, "alpha": e.glu.alpha}  # fmt: skip
    y = b.moe(inputs, attributes, "experts")
    if not e.shared:
        return y
    with b.scope("shared"):
        extra = _mlp(b, d, f"{prefix}{e.shared}", h, e.shared_inner, e.shared_glu)
        if e.shared_gate:
            gate = b.linear(h, f"{prefix}{e.shared_gate}.weight", 1, "gate")
            extra = b.scale_groups(extra, b.sigmoid(gate, "gate.sigmoid"), "gated")
    return b.add(y, extra, "with_shared")


def _as_stored(b: GraphBuilder, e: Experts, prefix: str) -> Experts:
    """`e` with the names under which this checkpoint has the experts."""
    ways = (Stacks(e.gate, e.up, e.down, e.order), *e.also)
    found = (one for one in ways if any(b.has(prefix + name.format(0)) for name in (one.gate, one.down)))
    way = next(found, ways[0])
    return replace(e, gate=way.gate, up=way.up, down=way.down, order=way.order)


def _stack(b: GraphBuilder, e: Experts, prefix: str, name: str, shape: tuple[int, int], label: str) -> ir.Value:
    """Experts [count, out, in], however they are stored."""
    if "{}" in name:
        return b.stack([f"{prefix}{name.format(i)}" for i in range(e.count)], shape, label)
    if e.swapped and not b.is_packed(f"{prefix}{name}"):  # packed ones lie as they are used
        return b.swapped(f"{prefix}{name}", (e.count, *shape), label)
    return b.weight(f"{prefix}{name}", (e.count, *shape))


def _linear(b: GraphBuilder, weight: str, x: ir.Value, out: int, bias: bool, name: str) -> ir.Value:
    return b.linear(x, f"{weight}.weight", out, name, f"{weight}.bias" if bias else "")
