"""The op cases of operators that keep a state per sequence; parts.py has the others."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from datong.conformance.build import PartBuilder
from datong.conformance.parts import Array, Params, Scene
from datong.spec.caches import caches_of
from datong.spec.program import TOKENS, Attr


def _scene(b: PartBuilder, p: Params, widths: dict[str, int], sizes: dict[str, float]) -> Scene:
    """Steps of normal values of these sizes; the caches of the only node join the part."""
    b.caches += caches_of(b.nodes[0], b.values)
    sequences = [(past, new) for past, new in p["sequences"]]
    counts = [n for n in (sum(past for past, _ in sequences),) if n] + [sum(new for _, new in sequences)]

    def values(tokens: int, name: str) -> Array:
        return (b.rng.standard_normal((tokens, widths[name])) * sizes.get(name, 1.0)).astype(np.float32)

    return Scene([{name: values(n, name) for name in widths} for n in counts], sequences, stateful=True)


def _causal_conv(b: PartBuilder, p: Params) -> Scene:
    channels, taps = p["shape"]
    inputs = [b.input("x", (TOKENS, channels)), b.weight("w", p["format"], (channels, taps))]
    inputs += [b.weight("bias", p["format"], (channels,))] if p["bias"] else []
    b.node("causal_conv", inputs, [("y", (TOKENS, channels))], {"layer": 3, "kind": p["kind"]})
    return _scene(b, p, {"x": channels}, {})


def _gated_delta(b: PartBuilder, p: Params) -> Scene:
    (k_heads, v_heads), (dk, dv), fmt = p["heads"], p["dims"], p["format"]
    widths = {"q": k_heads * dk, "k": k_heads * dk, "v": v_heads * dv, "a": v_heads, "b": v_heads}
    inputs = [b.input(name, (TOKENS, width)) for name, width in widths.items()]
    inputs += [b.weight("a_log", fmt, (v_heads,)), b.weight("dt_bias", fmt, (v_heads,))]
    attrs: dict[str, Attr] = {"layer": 3, "num_k_heads": k_heads, "num_v_heads": v_heads}
    attrs |= {"scale": dk**-0.5, "eps": p["eps"]}
    b.node("gated_delta", inputs, [("y", (TOKENS, v_heads * dv))], attrs)
    size = float(p.get("size", 1.0))
    return _scene(b, p, widths, {"q": size, "k": size})


def _linear_attention(b: PartBuilder, p: Params) -> Scene:
    heads, (dk, dv) = p["heads"], p["dims"]
    widths = {"q": heads * dk, "k": heads * dk, "v": heads * dv}
    inputs = [b.input(name, (TOKENS, width)) for name, width in widths.items()]
    slopes = (2.0 ** (-8.0 * np.arange(1, heads + 1) / heads)).astype(np.float32)
    attrs: dict[str, Attr] = {"layer": 3, "num_heads": heads, "scale": p["scale"]}
    b.node("linear_attention", [*inputs, b.const("slopes", slopes)], [("y", (TOKENS, heads * dv))], attrs)
    return _scene(b, p, widths, {})


BUILDERS: dict[str, Callable[[PartBuilder, Params], Scene]] = {
    "causal_conv": _causal_conv,
    "gated_delta": _gated_delta,
    "linear_attention": _linear_attention,
}
