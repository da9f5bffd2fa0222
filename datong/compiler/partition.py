"""Who runs what: every node is offered to the backends in the order given, and every refusal is kept with its reason.

    1. the first backend that says Yes takes the node; where devices stand in a row (`splits`), its layer's own is asked
       first, and with `strict` no other;
    2. neighbours on the same backend are one part; values pass between parts through the host;
    3. a node that nobody takes stops the compilation.

The backends come as arguments: this module knows their protocol only. `strict` also means that the caller gave no
backend but those that the user named.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from datong.compiler.draft import STEP_INPUTS, Draft
from datong.errors import Unsupported
from datong.spec.backend import Backend, No
from datong.spec.caches import caches_of, key
from datong.spec.program import Node, Part, Value

WHERE = "compile"


class Placer:
    """Asks each backend about each node once, and remembers the answers."""

    def __init__(self, backends: Sequence[Backend], splits: Sequence[int] = (), strict: bool = False) -> None:
        self.backends, self.splits, self.strict = tuple(backends), tuple(splits), strict
        self._stages: dict[str, int] = {}  # node -> number of its device in the row
        self._answers: dict[int, tuple[Node, Backend | None, tuple[tuple[str, str, str], ...]]] = {}
        self._fusions = {backend.name: backend.fusions() for backend in self.backends}
        self.unfused: list[tuple[str, str, str]] = []  # (backend, node, reason) of fusions that were refused

    def assign(self, stages: Mapping[str, int]) -> None:
        """Nodes by name -> number of their device in the row: the backend of that number is asked first."""
        self._stages.update(stages)

    def place(self, node: Node, values: Mapping[str, Value]) -> Backend | None:
        """The backend that takes the node, or None."""
        return self._ask(node, values)[0]

    def refusals(self, node: Node, values: Mapping[str, Value]) -> tuple[tuple[str, str, str], ...]:
        """Every No to this node on the way: (backend, node, reason)."""
        return self._ask(node, values)[1]

    def _ask(self, node: Node, values: Mapping[str, Value]) -> tuple[Backend | None, tuple[tuple[str, str, str], ...]]:
        known = self._answers.get(id(node))  # the node is kept, so that its id stays its own
        if known is None:
            taken: Backend | None = None
            refused: list[tuple[str, str, str]] = []
            for backend in self._candidates(node):
                answer = backend.supports(node, values)
                if isinstance(answer, No):
                    refused.append((backend.name, node.name, answer.reason))
                else:
                    taken = backend
                    break
            known = self._answers[id(node)] = (node, taken, tuple(refused))
        return known[1], known[2]

    def _candidates(self, node: Node) -> tuple[Backend, ...]:
        if not self.splits:
            return self.backends
        own = self.backends[self._stages[node.name]]
        return (own,) if self.strict else (own, *(backend for backend in self.backends if backend is not own))

    def may_fuse(self, parts: Sequence[Node], fused: Node, values: Mapping[str, Value]) -> bool:
        """May `fused` replace `parts`? Only if one backend runs them all, claims the fusion, and takes this one.

        Nodes of two devices in a row stay apart, also where one backend runs both.
        """
        stages = {self._stages.get(node.name, 0) for node in parts}
        if len(stages) > 1:
            return False
        self._stages[fused.name] = stages.pop()
        owner = self.place(parts[0], values)
        if owner is None or fused.op not in self._fusions[owner.name]:
            return False
        if any(self.place(node, values) is not owner for node in parts[1:]):
            return False
        answer = owner.supports(fused, values)
        if isinstance(answer, No):
            self.unfused.append((owner.name, fused.name, f"{fused.op} not formed: {answer.reason}"))
            return False
        return True


def partition(draft: Draft, placer: Placer) -> tuple[tuple[Part, ...], tuple[tuple[str, str, str], ...]]:
    """Parts in order, without memory plan, and every refusal. Raises Unsupported as the rules above say."""
    owners = [placer.place(node, draft.values) for node in draft.nodes]
    refusals = [refusal for node in draft.nodes for refusal in placer.refusals(node, draft.values)]
    _check(draft, placer, owners, refusals)
    runs: list[tuple[str, list[Node]]] = []
    for node, owner in zip(draft.nodes, owners, strict=True):
        name = owner.name if owner is not None else ""
        if not runs or runs[-1][0] != name:
            runs.append((name, []))
        runs[-1][1].append(node)
    parts = tuple(_part(draft, runs, i) for i in range(len(runs)))
    return parts, tuple(dict.fromkeys([*refusals, *placer.unfused]))


def _check(
    draft: Draft, placer: Placer, owners: Sequence[Backend | None], refusals: Sequence[tuple[str, str, str]]
) -> None:
    refused = {node.name for node, owner in zip(draft.nodes, owners, strict=True) if owner is None}
    if not refused:
        return
    reasons = [(node, f"{backend}: {why}") for backend, node, why in refusals if node in refused]
    text = f"`{reasons[0][0]}`: {reasons[0][1]}" if reasons else "no backend was given"
    raise Unsupported(
        WHERE,
        f"every node should run on {_wanted(placer)} but {len(refused)} of {len(draft.nodes)} do not; first {text}",
        "datong compile --explain lists every node and reason",
        reasons,
    )


def _wanted(placer: Placer) -> str:
    names = ", ".join(f"`{backend.name}`" for backend in placer.backends) or "none"
    if not placer.strict:
        return f"a backend ({names})"
    which = "its layer's backend" if placer.splits else "a backend"
    return f"{which} of {names}, as strict asks," if len(placer.backends) > 1 else f"backend {names}, as strict asks,"


def _part(draft: Draft, runs: Sequence[tuple[str, list[Node]]], index: int) -> Part:
    """Part number `index`: its values, what comes in and what later parts or the user read."""
    backend, nodes = runs[index]
    made = dict.fromkeys(name for node in nodes for name in node.outputs)
    read_later = {name for _, later in runs[index + 1 :] for node in later for name in node.inputs} | set(draft.outputs)
    values: dict[str, Value] = {}
    inputs: dict[str, None] = {}
    for node in nodes:
        for name in (*node.inputs, *node.outputs):
            if not name or name in values:
                continue
            value = draft.values[name]
            if value.kind in ("temp", "input") and name not in made:
                value = replace(value, kind="input")
                inputs[name] = None
            values[name] = value
    ordered = [name for name in STEP_INPUTS if name in inputs] + [name for name in inputs if name not in STEP_INPUTS]
    outputs = tuple(name for name in made if name in read_later)
    keys = sorted(key(spec) for node in nodes for spec in caches_of(node, draft.values))
    return Part(backend, values, tuple(nodes), tuple(ordered), outputs, tuple(draft.caches[one] for one in keys))
