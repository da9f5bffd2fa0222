"""The op cases of latent attention; parts.py has the others."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from datong.conformance.build import PartBuilder
from datong.conformance.parts import Params, Scene
from datong.conformance.parts_sparse import choice, sequences_of
from datong.spec.caches import caches_of
from datong.spec.program import TOKENS, Attr


def _latent_attention(b: PartBuilder, p: Params) -> Scene:
    (plain, rope, wide, value), heads = p["dims"], p["heads"]
    widths = {"q": heads * (plain + rope), "latent": wide, "k_rope": rope}
    inputs = [b.input(name, (TOKENS, width)) for name, width in widths.items()]
    inputs.append(b.weight("w", p["format"], (heads * (plain + value), wide), size=wide**-0.5))
    attrs: dict[str, Attr] = {"layer": 3, "num_heads": heads, "plain": plain, "scale": (plain + rope) ** -0.5}
    top_k = p.get("top_k", 0)
    if top_k:
        inputs.append(b.input("chosen", (TOKENS, top_k)))
    b.node("latent_attention", inputs, [("y", (TOKENS, heads * value))], attrs)
    b.caches += caches_of(b.nodes[0], b.values)
    sequences, counts = sequences_of(p)
    steps = [[range(past) for past, _ in sequences]] if len(counts) > 1 else []
    steps.append([range(past, past + new) for past, new in sequences])
    made = []
    for places in steps:
        own = [place for one in places for place in one]
        arrays = {n: b.rng.standard_normal((len(own), width)).astype(np.float32) for n, width in widths.items()}
        made.append(arrays | ({"chosen": np.stack([choice(b, place, 1, top_k) for place in own])} if top_k else {}))
    return Scene(made, sequences)


BUILDERS: dict[str, Callable[[PartBuilder, Params], Scene]] = {"latent_attention": _latent_attention}
