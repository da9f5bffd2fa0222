"""Rotary positions.

    y = x * cos + swap(x) * sin      swap exchanges the channels of a pair; the sine of the first one is negative

The tables in this form are made once per step, in the compute dtype, as the models' authors have them: angles and
cosines in f32, products in the element type of the activations.
"""

from __future__ import annotations

import torch
from torch import Tensor

from datong.backends.torch.builder import Builder
from datong.backends.torch.frame import Frame
from datong.spec.program import Node


def rope_table(node: Node, builder: Builder) -> str:
    """Cos and sin of positions * inv_freq, f32."""
    positions, name = node.inputs
    inv_freq = builder.weights.constant(name)[None]
    scale = float(str(node.attrs["scale"]))
    source = builder.read(positions)
    cos, sin = (builder.write(n) for n in node.outputs)

    def run(frame: Frame) -> None:
        registers = frame.registers
        angle = registers[source].to(torch.float32)[:, None] * inv_freq
        registers[cos], registers[sin] = (
            (angle.cos(), angle.sin()) if scale == 1 else (angle.cos() * scale, angle.sin() * scale)
        )

    builder.emit(run)
    return "torch cos, sin"


def rope(node: Node, builder: Builder) -> str:
    """Rotate pairs of the first r channels of each head."""
    x, cos_name, sin_name = node.inputs
    interleaved, heads = bool(node.attrs["interleaved"]), int(str(node.attrs["num_heads"]))
    cos, sin = builder.read(cos_name), builder.read(sin_name)
    found = builder.vendor("rope", node)
    if found is not None and builder.terms is not None:
        name, binding, function = found
        assert builder.terms is not None  # else there is no vendor's operator
        tables = binding.tables(node, builder.terms)
        key = (name, cos_name, sin_name, interleaved)
        made = builder.shared(key, lambda f: tables(f.registers[cos], f.registers[sin]))
        source, target = builder.read(x), builder.write(node.outputs[0])

        def vendor(frame: Frame) -> None:
            frame.registers[target] = function(frame.registers[source], *frame.registers[made])

        builder.emit(vendor)
        return name
    dtype = builder.dtype
    own = builder.shared(
        ("rope", cos_name, sin_name, interleaved),
        lambda f: _tables(f.registers[cos].to(dtype), f.registers[sin].to(dtype), interleaved),
    )
    width = builder.width(x)
    dim, rotated = width // heads, 2 * builder.width(cos_name)
    source, target = builder.read(x), builder.write(node.outputs[0])

    def run(frame: Frame) -> None:
        c, s = frame.registers[own]
        y = frame.registers[source].view(-1, heads, dim)
        if rotated == dim:
            y = _rotate(y, c, s, rotated // 2, interleaved)
        else:
            parts = y.split((rotated, dim - rotated), 2)
            y = torch.cat((_rotate(parts[0], c, s, rotated // 2, interleaved), parts[1]), 2)
        frame.registers[target] = y.view(-1, width)

    builder.emit(run)
    return "torch mul, addcmul"


def _tables(cos: Tensor, sin: Tensor, interleaved: bool) -> tuple[Tensor, Tensor]:
    """[T, r/2] each -> [T, 1, r] each: the cosine of every channel, and the signed sine of its partner."""
    if interleaved:
        cos, sin = torch.stack((cos, cos), 2).flatten(1), torch.stack((-sin, sin), 2).flatten(1)
    else:
        cos, sin = torch.cat((cos, cos), 1), torch.cat((-sin, sin), 1)
    return cos[:, None], sin[:, None]


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, half: int, interleaved: bool) -> Tensor:
    """X [T, H, r] by tables [T, 1, r]."""
    if interleaved:
        swapped = torch.stack((x[..., 1::2], x[..., ::2]), 3).flatten(2)
    else:
        swapped = torch.cat((x.narrow(2, half, half), x.narrow(2, 0, half)), 2)
    return torch.addcmul(x * cos, swapped, sin)
