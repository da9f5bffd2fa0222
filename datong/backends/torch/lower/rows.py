"""Row lookup: embedding, take_rows."""

from __future__ import annotations

from datong.backends.torch.builder import Builder
from datong.backends.torch.frame import Frame
from datong.spec.program import Node


def embedding(node: Node, builder: Builder) -> str:
    """y[t] = weight[ids[t]]."""
    ids, weight = node.inputs
    table = builder.weights.get(weight)
    source, target = builder.read(ids), builder.write(node.outputs[0])

    def run(frame: Frame) -> None:
        frame.registers[target] = table.index_select(0, frame.registers[source])

    builder.emit(run)
    return "torch index_select"


def take_rows(node: Node, builder: Builder) -> str:
    """y[r] = x[rows[r]]."""
    x, rows = (builder.read(name) for name in node.inputs)
    target = builder.write(node.outputs[0])

    def run(frame: Frame) -> None:
        frame.registers[target] = frame.registers[x].index_select(0, frame.registers[rows])

    builder.emit(run)
    return "torch index_select"
