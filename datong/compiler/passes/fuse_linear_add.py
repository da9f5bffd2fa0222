"""A linear and the addition of its result to the residual stream are `linear_add`.

Requires: fuse_linear_glu, fuse_linear_multi (linears that are free now stay free).
Rules:
  1. add(r, linear(x, W, b)) in any operand order, the product read by the add alone; of two linears the later is taken;
  2. the backend that would run both claims `linear_add` and says Yes to this one.
Ensures: stands where the add stood.
"""

from __future__ import annotations

from datong.compiler.draft import Draft, joined
from datong.compiler.partition import Placer
from datong.spec.program import Node


def run(draft: Draft, placer: Placer) -> int:
    """Rewrite in place; returns the number of fusions."""
    count = 0
    order = {node.name: i for i, node in enumerate(draft.nodes)}
    producers, readers = draft.producers(), draft.readers()
    for node in list(draft.nodes):
        if node.op != "add" or node.inputs[0] == node.inputs[1]:
            continue
        linears = [
            source
            for name in node.inputs
            if (source := producers.get(name)) is not None
            and source.op == "linear"
            and draft.sole_reader(name, readers) is node
        ]
        if not linears:
            continue
        linear = max(linears, key=lambda n: order[n.name])
        residual = node.inputs[1] if node.inputs[0] == linear.outputs[0] else node.inputs[0]
        inputs = (*linear.inputs[:2], residual, *linear.inputs[2:])
        fused = Node("linear_add", joined((linear, node)), inputs, node.outputs)
        if placer.may_fuse((linear, node), fused, draft.values):
            draft.substitute((linear, node), fused, at=node)
            count += 1
    return count
