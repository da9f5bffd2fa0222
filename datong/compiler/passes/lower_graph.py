"""The ONNX graph, all of whose nodes are `datong` operators by now, becomes a draft of spec nodes.

Requires: flatten_tokens.
Rules:
  1. input_ids and position_ids become `ids` and `positions`;
  2. a bound weight becomes a value of kind weight, an inline constant a vector of kind const;
  3. every node that remembers gets its CacheSpecs (spec/caches.py); a cache input that nobody reads is refused;
  4. names are made unique; what the graph left unnamed gets a name from its operator.
Ensures: a Draft that obeys spec/check.py; nothing of onnx_ir is needed after it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir

from datong.compiler import match
from datong.compiler.draft import HIDDEN, LOGITS, STEP_INPUTS, Draft
from datong.errors import CompileError
from datong.spec.caches import caches_of, key
from datong.spec.program import TOKENS, Attr, Dim, Node, Value

WHERE = "compile"
RENAMED = {"input_ids": "ids", "position_ids": "positions"}


def run(graph: ir.Graph) -> Draft:
    """The draft. Raises CompileError for caches that nobody reads and logits that no node makes."""
    return _Lowering().run(graph)


class _Lowering:
    """One run: which graph value has which name."""

    def __init__(self) -> None:
        self.draft = Draft()
        self.names: dict[ir.Value, str] = {}
        self.node_names: set[str] = set()

    def run(self, graph: ir.Graph) -> Draft:
        for value in graph.inputs:
            if value.name == HIDDEN:
                self.names[value] = HIDDEN
                self.draft.values[HIDDEN] = Value(HIDDEN, "input", "f32", (TOKENS, *(match.dims(value) or ())[2:]))
                continue
            name = RENAMED.get(value.name or "")
            if name is None:
                raise CompileError(WHERE, f"cache `{value.name}` is read by no operator")
            self.names[value] = name
            self.draft.values[name] = Value(name, "input", "i64", (TOKENS,))
        outputs = {str(value.name): value for value in graph.outputs}
        if LOGITS not in outputs or any(value.producer() is None for value in outputs.values()):
            raise CompileError(WHERE, f"logits should be made by a node, outputs are {list(outputs)}")
        for name, value in outputs.items():
            self.draft.values[name] = self._temp(value, name)  # reserves the name
            self.names[value] = name
        self.draft.whole = tuple(name for name in outputs if name != LOGITS)
        for node in graph:
            self._node(node)
        return self.draft

    def _node(self, node: ir.Node) -> None:
        inputs = tuple("" if value is None else self._operand(value) for value in node.inputs)
        outputs = tuple(self._output(value) for value in node.outputs)
        attrs: dict[str, Attr] = {name: attr.value for name, attr in node.attributes.items()}
        name = self._free(node.name or f"{node.op_type}_{len(self.draft.nodes)}", self.node_names)
        self.node_names.add(name)
        lowered = Node(node.op_type, name, inputs, outputs, attrs)
        self.draft.nodes.append(lowered)
        self._caches(lowered)

    def _caches(self, node: Node) -> None:
        for spec in caches_of(node, self.draft.values):
            if self.draft.caches.setdefault(key(spec), spec) is not spec:
                raise CompileError(
                    WHERE, f"node `{node.name}`: two nodes use the cache of layer {spec.layer}, kind `{spec.kind}`"
                )

    def _operand(self, value: ir.Value) -> str:
        """The name of an input, declared on the way where it is a weight or a constant."""
        if value in self.names:
            return self.names[value]
        weight = match.bound(value)
        made = self._constant(value) if weight is None else weight
        if self.draft.values.get(made.name) != made:
            free = self._free(made.name, self.draft.values)
            made = replace(made, name=free)
            self.draft.values[free] = made
        self.names[value] = made.name
        return made.name

    def _constant(self, value: ir.Value) -> Value:
        array = match.constant(value)
        if array is None or array.dtype != np.float32 or not np.isfinite(array).all():
            raise CompileError(
                WHERE, f"constant `{value.name}` should be a small finite f32 array, written in the graph"
            )
        data = tuple(float(x) for x in array.reshape(-1))
        return Value(value.name or "const", "const", "f32", (array.size,), data=data)

    def _output(self, value: ir.Value) -> str:
        if value not in self.names:
            name = self._free(value.name or "temp", self.draft.values)
            self.names[value] = name
            self.draft.values[name] = self._temp(value, name)
        return self.names[value]

    def _temp(self, value: ir.Value, name: str) -> Value:
        shape: tuple[Dim, ...] = match.dims(value) or ()
        return Value(name, "temp", "f32", shape)

    def _free(self, name: str, taken: object) -> str:
        used = taken if isinstance(taken, set | dict) else set()
        free, number = name, 1
        while free in used or free in STEP_INPUTS:
            free, number = f"{name}#{number}", number + 1
        return free
