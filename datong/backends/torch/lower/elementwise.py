"""Element by element: glu, add, mul, sigmoid, slice."""

from __future__ import annotations

import torch
from torch.nn import functional

from datong.backends.torch.builder import Builder, binary, unary
from datong.spec.program import Node


def glu(node: Node, builder: Builder) -> str:
    """Y = silu(gate) * up."""
    gate, up = (builder.read(name) for name in node.inputs)
    builder.emit(binary(gate, up, builder.write(node.outputs[0]), lambda g, u: functional.silu(g).mul_(u)))
    return "torch silu, mul"


def add(node: Node, builder: Builder) -> str:
    """Y = a + b."""
    a, b = (builder.read(name) for name in node.inputs)
    builder.emit(binary(a, b, builder.write(node.outputs[0]), torch.add))
    return "torch add"


def mul(node: Node, builder: Builder) -> str:
    """Y = a * b."""
    a, b = (builder.read(name) for name in node.inputs)
    builder.emit(binary(a, b, builder.write(node.outputs[0]), torch.mul))
    return "torch mul"


def sigmoid(node: Node, builder: Builder) -> str:
    """Y = 1 / (1 + exp(-x))."""
    builder.emit(unary(builder.read(node.inputs[0]), builder.write(node.outputs[0]), torch.sigmoid))
    return "torch sigmoid"


def slice_(node: Node, builder: Builder) -> str:
    """Keep [start : start+length] of every `group` channels."""
    group, start, length = (int(str(node.attrs[name])) for name in ("group", "start", "length"))
    groups = builder.width(node.inputs[0]) // group
    builder.emit(
        unary(
            builder.read(node.inputs[0]),
            builder.write(node.outputs[0]),
            lambda x: x.view(-1, groups, group).narrow(2, start, length).reshape(-1, groups * length),
        )
    )
    return "torch reshape"
