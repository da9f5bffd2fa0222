"""Compute logits only where they are asked for: everything after the last attention runs on the R rows of the step.

Requires: a draft, all activations `[T, n]`.
Rules:
  1. a node that some attention depends on, through any path, runs on all T tokens; so does attention itself, and what
     makes a result that is wanted for all tokens;
  2. a node that reads an input of the step runs on T too (ids and positions exist for tokens only);
  3. every other node runs on R rows: what it reads of the T side goes through one take_rows;
  4. where no node follows, the logits themselves are taken.
Ensures: logits are `[R, vocab]`; take_rows stands as early as it can.
"""

from __future__ import annotations

from dataclasses import replace

from datong.compiler.draft import Draft
from datong.compiler.partition import Placer
from datong.spec.caches import CACHES_OF
from datong.spec.program import ROWS, Node, Value


def run(draft: Draft, placer: Placer) -> int:
    """Rewrite in place; returns the number of take_rows."""
    draft.values["rows"] = Value("rows", "input", "i64", (ROWS,))
    needed = _needed_by_attention(draft)
    taken: dict[str, str] = {}
    on_rows: set[str] = set()
    nodes: list[Node] = []
    for node in draft.nodes:
        reads = [name for name in node.inputs if draft.is_activation(name)]
        if node.name in needed or any(draft.values[name].kind == "input" for name in reads):
            nodes.append(node)
            continue
        fresh = [name for name in dict.fromkeys(reads) if name not in on_rows and name not in taken]
        nodes.extend(_take(draft, name, taken) for name in fresh)
        nodes.append(replace(node, inputs=tuple(taken.get(name, name) for name in node.inputs)))
        for name in node.outputs:
            draft.values[name] = replace(draft.values[name], shape=(ROWS, *draft.values[name].shape[1:]))
            on_rows.add(name)
    draft.nodes = nodes
    if draft.output not in on_rows:
        _take_logits(draft)
    return len(taken)


def _needed_by_attention(draft: Draft) -> set[str]:
    """Names of the nodes that must run on all tokens, and of all that they depend on."""
    producers = draft.producers()
    stack = [node for node in draft.nodes if node.op in CACHES_OF or set(node.outputs) & set(draft.whole)]
    needed = {node.name for node in stack}
    while stack:
        for name in stack.pop().inputs:
            source = producers.get(name)
            if source is not None and source.name not in needed:
                needed.add(source.name)
                stack.append(source)
    return needed


def _take(draft: Draft, name: str, taken: dict[str, str]) -> Node:
    taken[name] = draft.add_value(f"{name}@rows", (ROWS, *draft.values[name].shape[1:]))
    return Node("take_rows", f"take_rows({name})", (name, "rows"), (taken[name],))


def _take_logits(draft: Draft) -> None:
    """The node that makes the logits runs on T: give its output another name and take the rows of that."""
    old = draft.values[draft.output]
    whole = draft.add_value(f"{draft.output}@tokens", old.shape)
    draft.nodes = [
        replace(
            node,
            inputs=tuple(whole if name == draft.output else name for name in node.inputs),
            outputs=tuple(whole if name == draft.output else name for name in node.outputs),
        )
        for node in draft.nodes
    ]
    draft.values[draft.output] = replace(old, shape=(ROWS, *old.shape[1:]))
    draft.nodes.append(Node("take_rows", f"take_rows({whole})", (whole, "rows"), (draft.output,)))
