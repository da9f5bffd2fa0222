"""An addition and the norm of its sum are `add_rms_norm`; the sum stays readable.

Requires: fuse_linear_add (an add that went into a linear is not here any more: where a backend claims both, the linear
wins, since it saves writing and reading the whole product).
Rules:
  1. s = add(a, b), rms_norm(s, w) over the whole width; of several norms of s the first is taken;
  2. the backend that would run both claims `add_rms_norm` and says Yes to this one.
Ensures: stands where the add stood.
"""

from __future__ import annotations

from datong.compiler.draft import Draft, joined
from datong.compiler.partition import Placer
from datong.spec.program import Node


def run(draft: Draft, placer: Placer) -> int:
    """Rewrite in place; returns the number of fusions."""
    count = 0
    readers = draft.readers()
    for add in list(draft.nodes):
        if add.op != "add":
            continue
        total = add.outputs[0]
        width = draft.values[total].shape[-1:]
        norms = [n for n in readers.get(total, []) if n.op == "rms_norm" and draft.values[n.inputs[1]].shape == width]
        if not norms:
            continue
        norm = norms[0]
        inputs = (*add.inputs, norm.inputs[1])
        fused = Node("add_rms_norm", joined((add, norm)), inputs, (total, norm.outputs[0]), dict(norm.attrs))
        if placer.may_fuse((add, norm), fused, draft.values):
            draft.substitute((add, norm), fused, at=add)
            count += 1
    return count
