"""Products with weights: linear and its fused forms, each one product with the matrices stacked at upload."""

from __future__ import annotations

import torch
from torch.nn import functional

from datong.backends.torch.builder import Builder, binary, unary
from datong.backends.torch.frame import Frame
from datong.spec.program import Node


def linear(node: Node, builder: Builder) -> str:
    """Y = x @ weight.T + bias."""
    x, name, bias_name = (*node.inputs, "")[:3]
    weight, bias = builder.weights.get(name), builder.weights.biases((bias_name,), (name,))
    source, target = builder.read(x), builder.write(node.outputs[0])
    builder.emit(unary(source, target, lambda x: functional.linear(x, weight, bias)))
    return "torch linear"


def linear_multi(node: Node, builder: Builder) -> str:
    """N linears of one input: one product, then views of its columns."""
    count = int(str(node.attrs["count"]))
    names = node.inputs[1 : 1 + count]
    weight = builder.weights.stacked(names)
    bias = builder.weights.biases((node.inputs[1 + count :] or ("",) * count), names)
    widths = [builder.width(name) for name in node.outputs]
    source, targets = builder.read(node.inputs[0]), [builder.write(name) for name in node.outputs]

    def run(frame: Frame) -> None:
        registers = frame.registers
        results = torch.split(functional.linear(registers[source], weight, bias), widths, 1)
        for target, result in zip(targets, results, strict=True):
            registers[target] = result

    builder.emit(run)
    return f"torch linear, {count} stacked"


def linear_glu(node: Node, builder: Builder) -> str:
    """Y = silu(x @ gate.T) * (x @ up.T): one product."""
    weight = builder.weights.stacked(node.inputs[1:3])
    source, target = builder.read(node.inputs[0]), builder.write(node.outputs[0])

    def run(frame: Frame) -> None:
        gate, up = functional.linear(frame.registers[source], weight).chunk(2, 1)
        frame.registers[target] = functional.silu(gate).mul_(up)

    builder.emit(run)
    return "torch linear, 2 stacked; silu, mul"


def linear_add(node: Node, builder: Builder) -> str:
    """Y = x @ weight.T + bias + residual."""
    x, name, residual, bias_name = (*node.inputs, "")[:4]
    weight, bias = builder.weights.get(name), builder.weights.biases((bias_name,), (name,))
    source, other, target = builder.read(x), builder.read(residual), builder.write(node.outputs[0])
    if bias is None:
        transposed = weight.t()
        builder.emit(binary(other, source, target, lambda r, x: torch.addmm(r, x, transposed)))
        return "torch addmm"
    builder.emit(binary(other, source, target, lambda r, x: functional.linear(x, weight, bias).add_(r)))
    return "torch linear, add"
