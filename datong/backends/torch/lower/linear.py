"""Products with weights: linear and its fused forms, each one product with the matrices stacked at upload."""

from __future__ import annotations

import torch
from torch.nn import functional

from datong.backends.torch.builder import Builder, binary, unary
from datong.backends.torch.frame import Frame
from datong.spec.program import Node


def linear(node: Node, builder: Builder) -> str:
    """One product: x @ weight.T + bias."""
    x, name, bias = (*node.inputs, "")[:3]
    product = builder.weights.product((name,), (bias,))
    builder.emit(unary(builder.read(x), builder.write(node.outputs[0]), product))
    return "torch linear"


def linear_multi(node: Node, builder: Builder) -> str:
    """N linears of one input: one product, then views of its columns."""
    count = int(str(node.attrs["count"]))
    product = builder.weights.product(node.inputs[1 : 1 + count], node.inputs[1 + count :])
    widths = [builder.width(name) for name in node.outputs]
    source, targets = builder.read(node.inputs[0]), [builder.write(name) for name in node.outputs]

    def run(frame: Frame) -> None:
        registers = frame.registers
        results = torch.split(product(registers[source]), widths, 1)
        for target, result in zip(targets, results, strict=True):
            registers[target] = result

    builder.emit(run)
    return f"torch linear, {count} stacked"


def linear_glu(node: Node, builder: Builder) -> str:
    """A gated pair: one product, then the activation, which a vendor may have for both halves side by side."""
    product = builder.weights.product(node.inputs[1:3])
    source, target = builder.read(node.inputs[0]), builder.write(node.outputs[0])
    found = builder.vendor("glu", node)
    if found is not None:
        name, _, joined = found
        builder.emit(unary(source, target, lambda x: joined(product(x))))
        return f"torch linear, 2 stacked; {name}"

    def run(frame: Frame) -> None:
        gate, up = product(frame.registers[source]).chunk(2, 1)
        frame.registers[target] = functional.silu(gate).mul_(up)

    builder.emit(run)
    return "torch linear, 2 stacked; silu, mul"


def linear_add(node: Node, builder: Builder) -> str:
    """A product and a residual: one call where there is no bias, else the sum in place."""
    x, name, residual, bias = (*node.inputs, "")[:4]
    source, other, target = builder.read(x), builder.read(residual), builder.write(node.outputs[0])
    if not bias and builder.weights.addmm:
        transposed = builder.weights.get(name).t()
        builder.emit(binary(other, source, target, lambda r, x: torch.addmm(r, x, transposed)))
        return "torch addmm"
    product = builder.weights.product((name,), (bias,))
    builder.emit(binary(other, source, target, lambda r, x: product(x).add_(r)))
    return "torch linear, add"
