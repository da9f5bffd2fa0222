"""Latent attention in the absorbed form: one row of cache a token, shared by all heads.

Neighbouring sequences with as many new tokens each are one batch; the rows of a sequence are gathered from its blocks.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from datong.backends.torch.builder import Builder
from datong.backends.torch.frame import Frame
from datong.backends.torch.lower.sparse import check_numbers, filled, places_of, seen
from datong.backends.torch.lower.state import runs
from datong.spec.program import Node


def latent_attention(node: Node, builder: Builder) -> str:
    """Queries go into the narrow space, what attention finds there comes back: two products per head."""
    layer, heads, plain = (int(str(node.attrs[n])) for n in ("layer", "num_heads", "plain"))
    scale, layouts, width = float(str(node.attrs["scale"])), builder.layouts, builder.width(node.outputs[0])
    choice = None
    if len(node.inputs) > 4:
        check_numbers(node, builder, 4)
        choice = builder.read(node.inputs[4])
    sources, target = [builder.read(name) for name in node.inputs[:3]], builder.write(node.outputs[0])
    weight = builder.weights.get(node.inputs[3])
    wide = weight.shape[1]
    whole = weight.view(heads, -1, wide)  # [H, P + Dv, C]
    up, down = whole[:, :plain], whole[:, plain:].transpose(1, 2)

    def run(frame: Frame) -> None:
        assert frame.cache is not None and frame.whole is not None
        batch, keys = frame.whole, frame.cache.keys[layer]
        q, latent, rope = (frame.registers[source] for source in sources)
        new_rows = torch.cat([latent, rope], 1)[: batch.tokens].view(batch.tokens, 1, -1)
        layouts.keys.write(keys, new_rows.to(keys.dtype), batch)
        results, rows = [], 0
        for row, first, count, new in runs(frame):
            rows = row + count * new
            kept = layouts.keys.gather(keys, batch.block_tables.narrow(0, first, count)).to(q.dtype)
            total = kept.shape[2]
            every = kept.expand(count, heads, total, kept.shape[3])
            own = q.narrow(0, row, count * new).view(count, new, heads, -1).transpose(1, 2)
            query = torch.cat([torch.matmul(own[..., :plain], up), own[..., plain:]], 3)
            places = places_of(frame, first, count, new)
            if choice is None:
                mask = (torch.arange(total, dtype=torch.int32, device=q.device) <= places)[:, None]
            else:
                picked = frame.registers[choice].narrow(0, row, count * new).view(count, new, -1)
                mask = seen(picked, 1, 1, total, places, batch.slots.dtype is torch.int64)
            found = functional.scaled_dot_product_attention(query, every, every[..., :wide], mask, scale=scale)
            results.append(torch.matmul(found, down).transpose(1, 2).reshape(count * new, -1))
        frame.registers[target] = filled(results, frame.tokens - rows, width, q.dtype)

    builder.emit(run)
    return "torch matmul, scaled_dot_product_attention"
