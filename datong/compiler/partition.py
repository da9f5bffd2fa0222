"""Who runs what: every node is offered to the backends in the order given, and every refusal is kept with its reason.

    1. the first backend that says Yes takes the node;
    2. neighbours on the same backend are one part; values pass between parts through the host;
    3. a node that nobody takes stops the compilation; with `strict`, so does one that the first backend refuses.

The backends come as arguments: this module knows their protocol only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from datong.compiler.draft import STEP_INPUTS, Draft
from datong.errors import Unsupported
from datong.spec.backend import Backend, No
from datong.spec.program import Node, Part, Value

WHERE = "compile"


class Placer:
    """Asks each backend about each node once, and remembers the answers."""

    def __init__(self, backends: Sequence[Backend]) -> None:
        self.backends = tuple(backends)
        self._answers: dict[int, tuple[Node, Backend | None, tuple[tuple[str, str, str], ...]]] = {}
        self._fusions = {backend.name: backend.fusions() for backend in self.backends}
        self.unfused: list[tuple[str, str, str]] = []  # (backend, node, reason) of fusions that were refused

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
            for backend in self.backends:
                answer = backend.supports(node, values)
                if isinstance(answer, No):
                    refused.append((backend.name, node.name, answer.reason))
                else:
                    taken = backend
                    break
            known = self._answers[id(node)] = (node, taken, tuple(refused))
        return known[1], known[2]

    def may_fuse(self, parts: Sequence[Node], fused: Node, values: Mapping[str, Value]) -> bool:
        """May `fused` replace `parts`? Only if one backend runs them all, claims the fusion, and takes this one."""
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


def partition(
    draft: Draft, placer: Placer, strict: bool = False
) -> tuple[tuple[Part, ...], tuple[tuple[str, str, str], ...]]:
    """Parts in order, without memory plan, and every refusal. Raises Unsupported as the rules above say."""
    owners = [placer.place(node, draft.values) for node in draft.nodes]
    refusals = [refusal for node in draft.nodes for refusal in placer.refusals(node, draft.values)]
    _check(draft, placer, owners, refusals, strict)
    runs: list[tuple[str, list[Node]]] = []
    for node, owner in zip(draft.nodes, owners, strict=True):
        name = owner.name if owner is not None else ""
        if not runs or runs[-1][0] != name:
            runs.append((name, []))
        runs[-1][1].append(node)
    parts = tuple(_part(draft, runs, i) for i in range(len(runs)))
    return parts, tuple(dict.fromkeys([*refusals, *placer.unfused]))


def _check(
    draft: Draft,
    placer: Placer,
    owners: Sequence[Backend | None],
    refusals: Sequence[tuple[str, str, str]],
    strict: bool,
) -> None:
    nobody = {node.name for node, owner in zip(draft.nodes, owners, strict=True) if owner is None}
    names = ", ".join(backend.name for backend in placer.backends) or "none"
    first = placer.backends[0] if placer.backends else None
    elsewhere = {node.name for node, o in zip(draft.nodes, owners, strict=True) if o is not first} if strict else set()
    refused = nobody or elsewhere
    if not refused:
        return
    reasons = [(node, f"{backend}: {why}") for backend, node, why in refusals if node in refused]
    wanted = f"a backend ({names})" if nobody else f"backend `{first.name if first else ''}`, as strict asks,"
    text = f"`{reasons[0][0]}`: {reasons[0][1]}" if reasons else "no backend was given"
    raise Unsupported(
        WHERE,
        f"every node should run on {wanted} but {len(refused)} of {len(draft.nodes)} do not; first {text}",
        "datong compile --explain lists every node and reason",
        reasons,
    )


def _part(draft: Draft, runs: Sequence[tuple[str, list[Node]]], index: int) -> Part:
    """Part number `index`: its values, what comes in and what later parts or the user read."""
    backend, nodes = runs[index]
    made = dict.fromkeys(name for node in nodes for name in node.outputs)
    read_later = {name for _, later in runs[index + 1 :] for node in later for name in node.inputs} | {draft.output}
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
    layers = sorted(int(str(node.attrs["layer"])) for node in nodes if node.op == "attention")
    return Part(backend, values, tuple(nodes), tuple(ordered), outputs, tuple(draft.caches[layer] for layer in layers))
