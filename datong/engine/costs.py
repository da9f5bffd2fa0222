"""What a node must read and compute in a step: the least that any implementation has to, for judging its time.

bytes       weights once a step (of experts: as many as so many tokens are expected to choose), rows of an embedding,
            keys and values once a step, states read and written. Activations are left out: they stay in caches.
operations  a multiply-add is two. `integer` where block weights meet 8-bit activations, else `real`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from datong import dtypes
from datong.spec import formats
from datong.spec.caches import KEYS, numbers
from datong.spec.program import ROWS, STATE_KINDS, CacheSpec, Node, Value


@dataclass(frozen=True)
class Cost:
    """Of one node in one or more steps."""

    bytes: float = 0.0
    integer: float = 0.0
    real: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.bytes + other.bytes, self.integer + other.integer, self.real + other.real)


@dataclass(frozen=True)
class Shape:
    """One step; of each sequence alike."""

    tokens: int  # new, of one sequence
    rows: int  # of logits, of one sequence
    context: int  # tokens in the cache after the step, of one sequence
    cache_dtype: str = "f16"
    sequences: int = 1


def cost(node: Node, values: Mapping[str, Value], caches: Iterable[CacheSpec], shape: Shape, exact: bool) -> Cost:
    """Of `node`, whose part has these values and caches; `exact`: activations stay floats."""
    out = values[node.outputs[0]]
    count = shape.sequences * (shape.rows if out.shape[0] == ROWS else shape.tokens)
    total = Cost()
    for name in node.inputs:
        value = values.get(name)
        if value is not None and value.kind == "weight" and count:
            total += _weight(node, value, count, exact)
    layer = node.attrs.get("layer")
    for spec in caches:
        if spec.layer == layer and spec.kind in KINDS.get(node.op, KEYS) and count:
            one = _cache(node, spec, shape, _chosen(node, values))
            total += Cost(one.bytes * shape.sequences, 0.0, one.real * shape.sequences)
    return total


def _weight(node: Node, value: Value, count: int, exact: bool) -> Cost:
    size, dims = sum(piece.length for piece in value.pieces), [int(d) for d in value.shape]
    if node.op == "embedding":
        return Cost(bytes=size / dims[0] * count)
    if len(dims) < 2:
        return Cost(bytes=size)
    share, times = 1.0, float(count)
    if len(dims) == 3:
        chosen = int(node.attrs.get("top_k", 1)) / dims[0]  # type: ignore[arg-type]
        share, times = 1 - (1 - chosen) ** count, count * chosen
    operations = 2.0 * times * math.prod(dims)
    integer = value.format not in PLAIN and not exact
    return Cost(size * share, operations if integer else 0.0, 0.0 if integer else operations)


PLAIN = {f.name for f in formats.ALL if not f.block}


# The cache of an operator, where a layer has several; of the others that which attention reads.
KINDS = {"select_keys": {"index"}, "causal_conv": {"conv"}, "gated_delta": {"recurrent"},
         "linear_attention": {"recurrent"}}  # fmt: skip
CHOSEN = {"sparse_attention": 3, "latent_attention": 4}  # which input says what is seen


def _chosen(node: Node, values: Mapping[str, Value]) -> int:
    """Keys that a token sees at most; 0: all."""
    place = CHOSEN.get(node.op, len(node.inputs))
    if place >= len(node.inputs):
        return 0
    groups, block = (int(node.attrs.get(name, 1)) for name in ("groups", "block"))  # type: ignore[arg-type]
    return int(values[node.inputs[place]].shape[-1]) // groups * block


def _cache(node: Node, spec: CacheSpec, shape: Shape, chosen: int = 0) -> Cost:
    if spec.kind in STATE_KINDS:
        state = spec.kv_heads * spec.key_dim * max(1, spec.value_dim)
        return Cost(bytes=8.0 * state, real=4.0 * state * shape.tokens)
    first = shape.context - shape.tokens
    window = spec.window or chosen or shape.context
    pairs = sum(min(position + 1, window) for position in range(first, shape.context))
    keys = min(shape.context, chosen * shape.tokens if chosen else window + shape.tokens - 1)
    width = spec.key_dim + spec.value_dim
    heads = int(node.attrs.get("num_heads", spec.kv_heads))  # type: ignore[arg-type]
    element = dtypes.BY_NAME[shape.cache_dtype].nbytes(1)
    return Cost(float(keys * numbers(spec) * element), 0.0, 2.0 * pairs * heads * width)


def shapes(begin: int, tokens: int, step_tokens: int, cache_dtype: str) -> Sequence[Shape]:
    """The steps that bring a sequence from `begin` to `begin + tokens` tokens; logits at the end."""
    found = []
    for start in range(begin, begin + tokens, step_tokens):
        end = min(start + step_tokens, begin + tokens)
        found.append(Shape(end - start, int(end == begin + tokens), end, cache_dtype))
    return found
