"""Make what the model's head reads a result of its own: the last normed value of every token, for embeddings.

Requires: a draft, before `select_rows`.
Rules:
  1. a graph that gives `hidden` already, for heads for speculation, stays as it is;
  2. from the logits back over nodes of one activation (scale, softcap, a bias added) stands the linear that makes them;
     what it reads is called `hidden`.
Ensures: `hidden`, `[T, n]`, is among the draft's results.
"""

from __future__ import annotations

from dataclasses import replace

from datong.compiler.draft import HIDDEN, Draft
from datong.errors import CompileError
from datong.spec.program import Node


def run(draft: Draft) -> int:
    """Rewrite in place; returns 1 if a result was added. Raises CompileError where no linear makes the logits."""
    if HIDDEN in draft.whole:
        return 0
    if HIDDEN in draft.values:
        raise CompileError("compile", f"`{HIDDEN}` should be free for the value before the head, it is an input")
    read = _head(draft).inputs[0]
    draft.values[HIDDEN] = replace(draft.values.pop(read), name=HIDDEN)
    draft.rename_inputs({read: HIDDEN})
    draft.nodes = [
        replace(node, outputs=tuple(HIDDEN if name == read else name for name in node.outputs))
        if read in node.outputs
        else node
        for node in draft.nodes
    ]
    draft.whole = (*draft.whole, HIDDEN)
    return 1


def _head(draft: Draft) -> Node:
    """The linear that makes the logits."""
    producers, name = draft.producers(), draft.output
    while True:
        node = producers.get(name)
        if node is not None and node.op == "linear":
            return node
        before = [] if node is None else [one for one in node.inputs if draft.is_activation(one)]
        if len(before) != 1:
            made = "nothing" if node is None else f"`{node.op}`"
            raise CompileError("compile", f"the logits should be made by a linear, {made} makes them")
        name = before[0]
