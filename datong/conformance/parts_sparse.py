"""The op cases of attention over chosen keys; parts.py has the others.

Numbers are small whole ones where a choice hangs on them: exact in every type, so that ties are ties everywhere.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from datong.conformance.build import PartBuilder
from datong.conformance.parts import Array, Params, Scene
from datong.spec.caches import caches_of
from datong.spec.program import TOKENS, Attr


def _layer_norm(b: PartBuilder, p: Params) -> Scene:
    n = p["n"]
    inputs = [b.input("x", (TOKENS, n)), b.weight("w", p["format"], (n,))]
    inputs += [b.weight("bias", p["format"], (n,))] if p["bias"] else []
    b.node("layer_norm", inputs, [("y", (TOKENS, n))], {"eps": p["eps"]})
    x = b.rng.standard_normal((p["tokens"], n)).astype(np.float32) + np.float32(p.get("mean", 0.0))
    return Scene([{"x": x}], [(0, p["tokens"])])


def _select_keys(b: PartBuilder, p: Params) -> Scene:
    (heads, groups), dim = p["heads"], p["dim"]
    widths = {"q": heads * dim, "k": dim} | ({"weights": heads} if p["weights"] else {})
    inputs = [b.input(name, (TOKENS, width)) for name, width in widths.items()]
    attrs: dict[str, Attr] = {"layer": 3, "num_heads": heads, "groups": groups, "top_k": p["top_k"]}
    attrs |= {"block": p["block"], "local": p["local"], "scale": 0.25, "kind": p["kind"]}
    b.node("select_keys", inputs, [("chosen", (TOKENS, groups * p["top_k"]))], attrs)
    b.caches += caches_of(b.nodes[0], b.values)
    sequences, counts = sequences_of(p)

    def values(tokens: int, width: int) -> Array:
        return b.rng.integers(-3, 4, (tokens, width)).astype(np.float32)

    return Scene([{name: values(n, width) for name, width in widths.items()} for n in counts], sequences)


def _sparse_attention(b: PartBuilder, p: Params) -> Scene:
    (hq, hkv, groups), (dk, dv), block, top_k = p["heads"], p["dims"], p["block"], p["top_k"]
    widths = {"q": hq * dk, "k": hkv * dk, "v": hkv * dv}
    inputs = [b.input(name, (TOKENS, width)) for name, width in widths.items()]
    inputs.append(b.input("chosen", (TOKENS, groups * top_k)))
    attrs: dict[str, Attr] = {"layer": 3, "num_heads": hq, "num_kv_heads": hkv, "groups": groups, "block": block}
    b.node("sparse_attention", inputs, [("y", (TOKENS, hq * dv))], attrs | {"scale": dk**-0.5})
    b.caches += caches_of(b.nodes[0], b.values)
    sequences, counts = sequences_of(p)
    steps = [[range(past) for past, _ in sequences]] if len(counts) > 1 else []
    steps.append([range(past, past + new) for past, new in sequences])
    arrays = []
    for places, tokens in zip(steps, counts, strict=True):
        made = {n: b.rng.standard_normal((tokens, width)).astype(np.float32) for n, width in widths.items()}
        flat = [place for one in places for place in one]
        made["chosen"] = np.stack([choice(b, place // block, groups, top_k) for place in flat])
        arrays.append(made)
    return Scene(arrays, sequences)


def choice(b: PartBuilder, own: int, groups: int, top_k: int) -> Array:
    """As select_keys gives it: ascending numbers up to the token's own block, which is always there, then -1."""
    found = np.full((groups, top_k), -1.0, np.float32)
    for row in found:
        others = b.rng.permutation(own)[: int(b.rng.integers(0, top_k))]
        row[: len(others) + 1] = np.sort(np.append(others, own))
    return found.reshape(-1)


def sequences_of(p: Params) -> tuple[list[tuple[int, int]], list[int]]:
    """(past, new) of each, and how many tokens each step has."""
    sequences = [(past, new) for past, new in p["sequences"]]
    return sequences, [n for n in (sum(past for past, _ in sequences),) if n] + [sum(new for _, new in sequences)]


BUILDERS: dict[str, Callable[[PartBuilder, Params], Scene]] = {
    "layer_norm": _layer_norm,
    "select_keys": _select_keys,
    "sparse_attention": _sparse_attention,
}
