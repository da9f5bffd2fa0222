"""Root-mean-square norms."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from datong.backends.torch.builder import Builder, unary
from datong.backends.torch.frame import Frame
from datong.spec.program import Node


def _norm(node: Node, builder: Builder, weight_name: str, width: int) -> Callable[[Tensor], Tensor]:
    """The norm as a function; one per group of D channels where the weight is narrower than the rows."""
    eps, offset = float(str(node.attrs["eps"])), float(str(node.attrs["offset"]))
    weight = builder.weights.get(weight_name)
    if offset:  # in f32: 1 + w in bf16 would lose most of w
        weight = (builder.weights.get(weight_name, torch.float32) + offset).to(builder.dtype)
    dims = (weight.shape[0],)
    if dims[0] == width:
        return lambda x: functional.rms_norm(x, dims, weight, eps)
    groups = width // dims[0]
    return lambda x: functional.rms_norm(x.view(-1, groups, dims[0]), dims, weight, eps).view(-1, width)


def rms_norm(node: Node, builder: Builder) -> str:
    """Y = x / sqrt(mean(x^2) + eps) * (weight + offset)."""
    x, weight = node.inputs
    norm = _norm(node, builder, weight, builder.width(x))
    builder.emit(unary(builder.read(x), builder.write(node.outputs[0]), norm))
    return "torch rms_norm"


def add_rms_norm(node: Node, builder: Builder) -> str:
    """Sum = a + b; y = rms_norm(sum)."""
    norm = _norm(node, builder, node.inputs[2], builder.width(node.inputs[0]))
    a, b = builder.read(node.inputs[0]), builder.read(node.inputs[1])
    total, y = (builder.write(name) for name in node.outputs)

    def run(frame: Frame) -> None:
        registers = frame.registers
        registers[total] = sum_ = registers[a] + registers[b]
        registers[y] = norm(sum_)

    builder.emit(run)
    return "torch add, rms_norm"
