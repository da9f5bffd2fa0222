"""Two linears that share their input, and the glu of their results, are `linear_glu`.

Requires: a draft.
Rules:
  1. glu(linear(x, Wg), linear(x, Wu)), no biases, both products read by the glu alone;
  2. the backend that would run all three claims `linear_glu` and says Yes to this one.
Ensures: stands where the glu stood.
"""

from __future__ import annotations

from datong.compiler.draft import Draft, joined
from datong.compiler.partition import Placer
from datong.spec.program import Node


def run(draft: Draft, placer: Placer) -> int:
    """Rewrite in place; returns the number of fusions."""
    count = 0
    producers, readers = draft.producers(), draft.readers()
    for node in list(draft.nodes):
        if node.op != "glu":
            continue
        gate, up = (producers.get(name) for name in node.inputs)
        if gate is None or up is None or gate is up or gate.op != "linear" or up.op != "linear":
            continue
        if any(
            n.inputs[2:] not in ((), ("",)) or draft.sole_reader(n.outputs[0], readers) is not node for n in (gate, up)
        ):
            continue
        if gate.inputs[0] != up.inputs[0]:
            continue
        inputs = (gate.inputs[0], gate.inputs[1], up.inputs[1])
        fused = Node("linear_glu", joined((gate, up, node)), inputs, node.outputs, dict(node.attrs))
        if placer.may_fuse((gate, up, node), fused, draft.values):
            draft.substitute((gate, up, node), fused, at=node)
            count += 1
    return count
