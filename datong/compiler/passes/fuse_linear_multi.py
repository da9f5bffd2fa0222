"""Linears that share their input (q, k and v) are one `linear_multi`: the input is read, and quantised, once.

Requires: fuse_linear_glu (gate and up are better there).
Rules:
  1. all linears that read the same x, two or more; they keep their order and their biases;
  2. the backend that would run them claims `linear_multi` and says Yes to this one; if it refuses them all together,
     those of one weight format are tried.
Ensures: stands where the first of them stood.
"""

from __future__ import annotations

from collections.abc import Sequence

from datong.compiler.draft import Draft, joined
from datong.compiler.partition import Placer
from datong.spec.program import Node


def run(draft: Draft, placer: Placer) -> int:
    """Rewrite in place; returns the number of fusions."""
    groups: dict[str, list[Node]] = {}
    for node in draft.nodes:
        if node.op == "linear":
            groups.setdefault(node.inputs[0], []).append(node)
    count = 0
    for group in groups.values():
        if _fuse(draft, placer, group):
            count += 1
            continue
        by_format: dict[str, list[Node]] = {}
        for node in group:
            by_format.setdefault(draft.values[node.inputs[1]].format, []).append(node)
        if len(by_format) > 1:
            count += sum(_fuse(draft, placer, same) for same in by_format.values())
    return count


def _fuse(draft: Draft, placer: Placer, group: Sequence[Node]) -> bool:
    if len(group) < 2:
        return False
    weights = tuple(node.inputs[1] for node in group)
    biases = tuple(node.inputs[2] if len(node.inputs) > 2 else "" for node in group)
    outputs = tuple(node.outputs[0] for node in group)
    fused = Node("linear_multi", joined(group), (group[0].inputs[0], *weights, *biases), outputs, {"count": len(group)})
    if not placer.may_fuse(group, fused, draft.values):
        return False
    draft.substitute(group, fused, at=group[0])
    return True
