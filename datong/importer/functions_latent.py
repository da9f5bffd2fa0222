"""LatentAttention(q, latent, k_rope, weight, chosen, past_key) -> y, present_key, spec `latent_attention`.

The body, of stock operators, is the absorbed form: queries are taken into the narrow space, so that the cache
`[batch, 1, past, C + R]` is read as it is, by all heads.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from datong.importer.body import Attrs, Body, overload
from datong.importer.functions_sparse import marks_of, places_of

LATENT_INPUTS = ("q", "latent", "k_rope", "weight", "chosen", "past_key")


def latent_attention(attributes: Attrs, present: Sequence[bool]) -> ir.Function:
    """The body of LatentAttention."""
    b = Body(LATENT_INPUTS)
    heads, plain = int(attributes["num_heads"]), int(attributes["plain"])
    end, last = b.ints(np.iinfo(np.int64).max), b.ints(-1)
    new = b("Unsqueeze", b("Concat", b.inputs["latent"], b.inputs["k_rope"], axis=-1), b.ints(1))
    keys = b("Concat", b.inputs["past_key"], new, axis=2)  # [b, 1, total, C + R]
    q = b("Transpose", b("Reshape", b.inputs["q"], b.ints(0, 0, heads, -1)), perm=[0, 2, 1, 3])
    wide = b.size(b.inputs["weight"], 1)
    weight = b("Reshape", b.inputs["weight"], b("Concat", b.ints(heads, -1), wide, axis=0))  # [H, P + Dv, C]
    up = b("Slice", weight, b.ints(0), b.ints(plain), b.ints(1))
    down = b("Slice", weight, b.ints(plain), end, b.ints(1))
    narrow = b("MatMul", b("Slice", q, b.ints(0), b.ints(plain), last), up)  # [b, H, seq, C]
    query = b("Concat", narrow, b("Slice", q, b.ints(plain), end, last), axis=-1)
    score = b("MatMul", query, b("Transpose", keys, perm=[0, 1, 3, 2]))
    score = b("Mul", score, b.real(float(attributes["scale"])))
    places, every, total = places_of(b, b.inputs["past_key"], new, 2)
    seen = b("GreaterOrEqual", places, every)
    if not present[LATENT_INPUTS.index("chosen")]:
        weights = b("Softmax", b("Where", seen, score, b.real(-np.inf)), axis=-1)
    else:
        numerals = (b("Squeeze", b.ints(0)), b("Squeeze", b.ints(1)))
        marks = marks_of(b, b("Unsqueeze", b.inputs["chosen"], b.ints(1)), total, numerals)
        inside = b("Slice", marks, b.ints(0), b("Unsqueeze", total, b.ints(0)), b.ints(3))
        picked = b("Greater", inside, b.real(0.5))  # [b, 1, seq, total]
        weights = b("Softmax", b("Where", b("And", seen, picked), score, b.real(-np.inf)), axis=-1)
    found = b("MatMul", weights, b("Slice", keys, b.ints(0), wide, last))  # [b, H, seq, C]
    y = b("Transpose", b("MatMul", found, b("Transpose", down, perm=[0, 2, 1])), perm=[0, 2, 1, 3])
    packed = b("Reshape", y, b.ints(0, 0, -1))
    return b.function("LatentAttention", overload(attributes, present), [packed, keys], attributes)
