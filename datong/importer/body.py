"""What the bodies of our ONNX functions are written with; functions.py has the functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

DOMAIN = "datong"
VERSION = 1

Attrs = Mapping[str, int | float | str]


class Body:
    """Nodes of one function in the order of the calls; or of a graph inside it, whose names begin with `prefix`."""

    def __init__(self, inputs: Sequence[str], prefix: str = "") -> None:
        self.inputs = {name: ir.Value(name=f"{prefix}{name}") for name in inputs}
        self.nodes: list[ir.Node] = []
        self._prefix = prefix

    def __call__(self, op: str, *inputs: ir.Value | None, outputs: int = 1, **attributes: Any) -> Any:
        """Append a node; its output, or a tuple of them."""
        name = f"{self._prefix}{op}_{len(self.nodes)}"
        node = ir.node(op, list(inputs), attributes, num_outputs=outputs, name=name)
        for i, value in enumerate(node.outputs):
            value.name = f"{name}_{i}"
        self.nodes.append(node)
        return node.outputs[0] if outputs == 1 else tuple(node.outputs)

    def ints(self, *numbers: int) -> ir.Value:
        """A constant i64 vector."""
        return self._constant(np.array(numbers, np.int64))

    def real(self, number: float) -> ir.Value:
        """A constant f32 scalar."""
        return self._constant(np.array(number, np.float32))

    def size(self, value: ir.Value, axis: int) -> ir.Value:
        """One dim as an i64 vector of one."""
        dim: ir.Value = self("Shape", value, start=axis, end=axis + 1)
        return dim

    def _constant(self, array: np.ndarray) -> ir.Value:
        made: ir.Value = self("Constant", value=ir.tensor(array))
        return made

    def function(self, name: str, overload: str, outputs: Sequence[ir.Value], attributes: Attrs) -> ir.Function:
        """The function; every attribute of the call is declared, though the body has their values in it."""
        graph = ir.Graph(
            list(self.inputs.values()),
            list(outputs),
            nodes=self.nodes,
            opset_imports={"": 27},
            name=f"{name}.{overload}",
        )
        kinds = {int: ir.AttributeType.INT, float: ir.AttributeType.FLOAT, str: ir.AttributeType.STRING}
        declared = [ir.Attr(key, kinds[type(value)], None) for key, value in attributes.items()]
        return ir.Function(DOMAIN, name, overload, graph=graph, attributes=declared)


def overload(attributes: Attrs, present: Sequence[bool]) -> str:
    """The name of the body: the attributes in order, and which optional inputs there are."""
    # floats as f32, which is what an attribute of a file holds
    parts = [f"{k}_{np.float32(v) if isinstance(v, float) else v}" for k, v in sorted(attributes.items())]
    return ".".join([*parts, "".join("1" if there else "0" for there in present)])
