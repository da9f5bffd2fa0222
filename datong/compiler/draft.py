"""The program under construction: spec nodes in order, before it is known who runs them. Back passes work on this."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from datong.spec.program import CacheSpec, Dim, Node, Part, Value

LOGITS = "logits"
STEP_INPUTS = ("ids", "positions", "rows")  # what a Step brings; spec/program.py
HIDDEN = "hidden"  # [T, n] f32, what the model gave last: the engine brings it to a head for speculation


@dataclass
class Draft:
    """Nodes in execution order and the values that they name.

    `output` is the result, for the rows that are asked for; `whole` are results for all tokens, for speculation.
    """

    values: dict[str, Value] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)
    caches: dict[tuple[int, str], CacheSpec] = field(default_factory=dict)  # by layer and kind
    output: str = LOGITS
    whole: tuple[str, ...] = ()

    @property
    def outputs(self) -> tuple[str, ...]:
        """Every result."""
        return (self.output, *self.whole)

    def is_activation(self, name: str) -> bool:
        """Made by a node, or brought by the step."""
        return bool(name) and self.values[name].kind in ("temp", "input")

    def lead(self, name: str) -> Dim:
        """The leading dim of an activation: TOKENS or ROWS."""
        return self.values[name].shape[0]

    def add_value(self, name: str, shape: tuple[Dim, ...]) -> str:
        """Declare a temp under `name`, or under a free name like it; returns the name."""
        free, number = name, 1
        while free in self.values:
            free, number = f"{name}#{number}", number + 1
        self.values[free] = Value(free, "temp", "f32", shape)
        return free

    def producers(self) -> dict[str, Node]:
        """Value name -> the node that makes it."""
        return {name: node for node in self.nodes for name in node.outputs}

    def readers(self) -> dict[str, list[Node]]:
        """Value name -> the nodes that read it, in order; the program's output has one more reader than it says."""
        found: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in node.inputs:
                if name:
                    found.setdefault(name, []).append(node)
        return found

    def sole_reader(self, name: str, readers: dict[str, list[Node]]) -> Node | None:
        """The only node that reads `name`; None if there are more, none, or it is the program's output."""
        found = readers.get(name, [])
        return found[0] if len(found) == 1 and name not in self.outputs else None

    def substitute(self, old: Sequence[Node], new: Node, at: Node) -> None:
        """Put `new` in the place of `at` and take `old` (which may hold `at`) out."""
        gone = {id(node) for node in old}
        out: list[Node] = []
        for node in self.nodes:
            if node is at:
                out.append(new)
            elif id(node) not in gone:
                out.append(node)
        self.nodes = out

    def rename_inputs(self, names: dict[str, str]) -> None:
        """Let every node that reads a key of `names` read its value instead."""
        self.nodes = [
            replace(node, inputs=tuple(names.get(name, name) for name in node.inputs))
            if any(name in names for name in node.inputs)
            else node
            for node in self.nodes
        ]
        self.output = names.get(self.output, self.output)
        self.whole = tuple(names.get(name, name) for name in self.whole)

    def as_part(self, backend: str = "draft") -> Part:
        """The whole draft as one part, unplanned: for checks."""
        values = self.used_values()
        inputs = tuple(name for name, value in values.items() if value.kind == "input" and name not in STEP_INPUTS)
        inputs = (*(name for name in STEP_INPUTS if name in values), *inputs)
        caches = tuple(self.caches[key] for key in sorted(self.caches))
        return Part(backend, values, tuple(self.nodes), inputs, self.outputs, caches)

    def used_values(self) -> dict[str, Value]:
        """Values that some node reads or writes, in that order."""
        names = dict.fromkeys(name for node in self.nodes for name in (*node.inputs, *node.outputs) if name)
        return {name: self.values[name] for name in names}


def joined(nodes: Sequence[Node]) -> str:
    """The name of a node that stands for several."""
    return "+".join(node.name for node in nodes)
