"""Heads for speculation (multi-token prediction): each guesses one token further from what the model gave last.

    head k:  x = eh_proj(concat(enorm(embedding[next ids]), hnorm(hidden)));  hidden' = norm(layer(x));
             logits = head(hidden')

`hidden` is what the head before gave, for the first one the model's own last normed value; `next ids` are one token
ahead of it. Each head is a graph of its own with its own cache, so that a model without speculation carries nothing of
it. Source: DeepSeek-V3 (arXiv 2412.19437, section 2.2); transformers' MtpLayer.
"""

from __future__ import annotations

from datong.importer.graph import F32, I64, GraphBuilder
from datong.importer.models.decoder import BuiltHead, Decoder, Head
from datong.importer.models.layers import attention_block, mlp_block
from datong.importer.weights import WeightMap

COPY = "a copy of the model's own, which the head for speculation reads"


def present(decoder: Decoder, weights: WeightMap) -> list[Head]:
    """The heads whose tensors are there, up to the first that is not; its layer must be of the expected kind."""
    count = 0
    for head in decoder.heads:
        prefix, n = decoder.names.layer.format(head.index), decoder.names
        mlp = head.layer.experts.router if head.layer.experts else f"{n.mlp}{n.gate_up or n.gate}"
        if not all(weights.has(f"{prefix}{name}.weight") for name in (head.project, head.norm, mlp)):
            break
        count += 1
    return list(decoder.heads[:count])


def build_heads(family: str, decoder: Decoder, weights: WeightMap) -> tuple[BuiltHead, ...]:
    """Graphs of the heads that are present; after the model's own, so that what they share counts as the model's."""
    built = tuple(
        _build(f"{family}.speculation.{number}", decoder, head, weights)
        for number, head in enumerate(present(decoder, weights))
    )
    for name in weights.taken:
        weights.ignored.pop(name, None)
    return built


def _build(name: str, d: Decoder, head: Head, weights: WeightMap) -> BuiltHead:
    n, b, before = d.names, GraphBuilder(name, weights), set(weights.taken)
    prefix = n.layer.format(head.index)
    ids = b.input("input_ids", I64, ("batch", "seq"))
    positions = b.input("position_ids", I64, ("batch", "seq"))
    hidden = b.input("hidden", F32, ("batch", "seq", d.hidden))
    table = None if head.layer.rope is None else b.rope_table(positions, d.ropes[head.layer.rope], "rope")
    x = b.embedding(ids, f"{n.embed}.weight", d.vocab, d.hidden, "embed")
    if d.embed_scale:
        x = b.scale(x, d.embed_scale, "embed.scaled")
    parts = [
        b.rms_norm(value, f"{prefix}{weight}.weight", d.eps, weight, d.norm_offset)
        for value, weight in ((x, head.embed_norm), (hidden, head.hidden_norm))
    ]
    x = b.linear(b.joined(parts, 1, "both"), f"{prefix}{head.project}.weight", d.hidden, "project")
    with b.scope("layer"):
        x = attention_block(b, d, head.layer, prefix, x, table)
        x = mlp_block(b, d, head.layer, prefix, x)
    x = b.rms_norm(x, f"{prefix}{head.norm}.weight", d.eps, "norm", d.norm_offset)
    own = f"{prefix}{head.head}.weight"
    matrix = own if weights.has(own) else f"{n.embed if d.tied else n.head}.weight"
    b.output(b.linear(x, matrix, d.vocab, "head"), "logits")
    b.output(x, "hidden_out")
    weights.ignore(lambda tensor: tensor == f"{prefix}embed_tokens.weight", COPY)
    return BuiltHead(b.finish(), tuple(b.caches), frozenset(weights.taken - before))
