"""Element by element: glu, add, mul, sigmoid, scale; and channels cut and joined: slice, concat."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from datong.backends.torch.builder import Builder, binary, unary
from datong.spec.program import Node


def gated(node: Node) -> Callable[[Tensor, Tensor], Tensor]:
    """The function of (gate, up) that a node's `kind`, `limit` and `alpha` name."""
    kind, limit, alpha = str(node.attrs["kind"]), *(float(str(node.attrs.get(n, 0.0))) for n in ("limit", "alpha"))
    if kind == "gelu_tanh":
        return lambda g, u: functional.gelu(g, approximate="tanh").mul_(u)
    if kind == "silu_clamp":
        return lambda g, u: functional.silu(g).clamp_(max=limit).mul_(u.clamp(-limit, limit))
    if kind == "oai":

        def oai(g: Tensor, u: Tensor) -> Tensor:
            low = g.clamp(max=limit)
            return low.mul(torch.sigmoid(low * alpha)).mul_(u.clamp(-limit, limit).add_(1.0))

        return oai
    return lambda g, u: functional.silu(g).mul_(u)


def glu(node: Node, builder: Builder) -> str:
    """A gated unit of one of the kinds."""
    gate, up = (builder.read(name) for name in node.inputs)
    builder.emit(binary(gate, up, builder.write(node.outputs[0]), gated(node)))
    kind = str(node.attrs["kind"])
    return "torch silu, mul" if kind == "silu" else f"torch {kind}, mul"


def scale(node: Node, builder: Builder) -> str:
    """Y = x * factor."""
    factor = float(str(node.attrs["factor"]))
    builder.emit(unary(builder.read(node.inputs[0]), builder.write(node.outputs[0]), lambda x: x * factor))
    return "torch mul"


def scale_groups(node: Node, builder: Builder) -> str:
    """Each group of channels times its own number."""
    x, s = (builder.read(name) for name in node.inputs)
    width, groups = (builder.width(name) for name in node.inputs)
    builder.emit(
        binary(
            x,
            s,
            builder.write(node.outputs[0]),
            lambda x, s: x.view(-1, groups, width // groups).mul(s[:, :, None]).view(-1, width),
        )
    )
    return "torch mul"


def concat(node: Node, builder: Builder) -> str:
    """Channels of a and b, group by group."""
    groups = int(str(node.attrs["groups"]))
    a, b = (builder.read(name) for name in node.inputs)
    first, second = (builder.width(name) // groups for name in node.inputs)
    builder.emit(
        binary(
            a,
            b,
            builder.write(node.outputs[0]),
            lambda a, b: torch.cat([a.reshape(-1, groups, first), b.reshape(-1, groups, second)], 2).flatten(1),
        )
    )
    return "torch cat"


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
