"""Remove nodes whose outputs nobody reads, and values that nobody names.

Requires: a draft.
Rules:
  1. keep attention (it writes a cache that later steps read) and whatever leads to it or to a result.
Ensures: every node matters; every value has a node.
"""

from __future__ import annotations

from datong.compiler.draft import Draft
from datong.compiler.partition import Placer
from datong.spec.caches import CACHES_OF
from datong.spec.program import Node


def run(draft: Draft, placer: Placer) -> int:
    """Rewrite in place; returns the number of nodes taken out."""
    wanted = set(draft.outputs)
    kept: list[Node] = []
    for node in reversed(draft.nodes):
        if node.op in CACHES_OF or wanted.intersection(node.outputs):
            wanted.update(node.inputs)
            kept.append(node)
    count = len(draft.nodes) - len(kept)
    draft.nodes = kept[::-1]
    draft.values = draft.used_values()
    return count
