"""Two nodes that compute the same are one: above all, rope tables that each layer made for itself.

Requires: a draft.
Rules:
  1. same operator, inputs and attributes, and not attention (which writes its cache)  ->  the first one serves both.
Ensures: no two such nodes.
"""

from __future__ import annotations

from datong.compiler.draft import Draft
from datong.compiler.partition import Placer
from datong.spec.caches import CACHES_OF
from datong.spec.program import Node


def run(draft: Draft, placer: Placer) -> int:
    """Rewrite in place; returns the number of nodes taken out."""
    seen: dict[tuple[object, ...], Node] = {}
    names: dict[str, str] = {}
    kept: list[Node] = []
    made = set(draft.outputs)
    for node in draft.nodes:
        inputs = tuple(names.get(name, name) for name in node.inputs)
        node = node if inputs == node.inputs else Node(node.op, node.name, inputs, node.outputs, node.attrs)
        key = (node.op, node.inputs, *sorted(node.attrs.items()))
        first = seen.get(key) if node.op not in CACHES_OF and not made.intersection(node.outputs) else None
        if first is None:
            seen[key] = node
            kept.append(node)
        else:
            names.update(zip(node.outputs, first.outputs, strict=True))
    count = len(draft.nodes) - len(kept)
    draft.nodes = kept
    return count
