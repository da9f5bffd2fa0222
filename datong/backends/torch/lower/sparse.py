"""Attention over chosen keys: select_keys, sparse_attention; and layer_norm, which the choosing heads need.

Neighbouring sequences with as many new tokens each are one batch. The keys of a sequence are gathered from its blocks,
those that a token does not see are masked: exact, and as much work as dense attention. Numbers of blocks stay f32
whatever the activations are: bf16 has none above 256.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from datong.backends.torch.builder import Builder, unary
from datong.backends.torch.cache import INDEX
from datong.backends.torch.frame import Frame
from datong.backends.torch.lower.state import runs
from datong.errors import Unsupported
from datong.spec.program import Node

NOWHERE = 2.0**24  # above any block's number


def layer_norm(node: Node, builder: Builder) -> str:
    """Y = (x - mean) / sqrt(var + eps) * weight + bias."""
    weight = builder.weights.get(node.inputs[1])
    bias = builder.weights.get(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] else None
    eps, dims = float(str(node.attrs["eps"])), (weight.shape[0],)
    source, target = builder.read(node.inputs[0]), builder.write(node.outputs[0])
    builder.emit(unary(source, target, lambda x: functional.layer_norm(x, dims, weight, bias, eps)))
    return "torch layer_norm"


def select_keys(node: Node, builder: Builder) -> str:
    """Scores of all keys at once, sorted: a stable sort leaves equals in order, which topk does not promise."""
    heads, groups, top, block = (int(str(node.attrs[n])) for n in ("num_heads", "groups", "top_k", "block"))
    layer, local, scale = int(str(node.attrs["layer"])), int(str(node.attrs.get("local", 0))), node.attrs["scale"]
    relu = node.attrs["kind"] == "relu"
    sources = [builder.read(name) for name in node.inputs if name]
    target = builder.write(node.outputs[0])

    def choose(q: Tensor, keys: Tensor, weights: Tensor | None, places: Tensor, wide: bool) -> Tensor:
        """Q [B, n, H*D], keys [B, total, D], weights [B, n, H], places [B, n, 1] -> [B, n, G*K]."""
        count, new, total = q.shape[0], q.shape[1], keys.shape[1]
        score = torch.matmul(q.view(count, new * heads, -1), keys.transpose(1, 2)) * float(str(scale))
        score = functional.relu(score) if relu else score
        score = score.view(count, new, heads, total)
        score = score if weights is None else score * weights[..., None]
        score = score.view(count, new, groups, heads // groups, total).sum(3) if heads != groups else score
        every = torch.arange(total, dtype=torch.int32, device=q.device)
        score = score.masked_fill((every > places)[:, :, None], float("-inf"))
        blocks = -(-total // block)
        if block > 1:
            padded = functional.pad(score, (0, blocks * block - total), value=float("-inf"))
            score = padded.view(count, new, groups, blocks, block).amax(4)
        numbers = torch.arange(blocks, dtype=torch.int32, device=q.device)
        if local:
            behind = torch.div(places, block, rounding_mode="floor") - numbers
            score = score.masked_fill(((behind >= 0) & (behind < local))[:, :, None], float("inf"))
        found = (_best if wide else _best_by_comparing)(score, min(top, blocks), numbers)
        found = functional.pad(found.masked_fill(found == NOWHERE, -1.0), (0, max(0, top - blocks)), value=-1.0)
        return found.reshape(count, new, groups * top)

    def run(frame: Frame) -> None:
        assert frame.cache is not None and frame.whole is not None
        batch, cache = frame.whole, frame.cache.index[layer]
        q, k, *rest = (frame.registers[source] for source in sources)
        INDEX.write(cache, k[: batch.tokens].view(batch.tokens, 1, -1).to(cache.dtype), batch)
        results, rows = [], 0
        for row, first, count, new in runs(frame):
            rows = row + count * new
            own = [x.narrow(0, row, count * new).view(count, new, -1).to(torch.float32) for x in (q, *rest)]
            keys = INDEX.gather(cache, batch.block_tables.narrow(0, first, count))[:, 0].to(torch.float32)
            places, wide = places_of(frame, first, count, new), batch.slots.dtype is torch.int64
            results.append(choose(own[0], keys, own[1] if rest else None, places, wide).flatten(0, 1))
        frame.registers[target] = filled(results, frame.tokens - rows, groups * top, torch.float32)

    builder.emit(run)
    return "torch matmul, sort"


def sparse_attention(node: Node, builder: Builder) -> str:
    """Dense attention, whose mask leaves the chosen keys. Raises Unsupported where numbers came rounded."""
    heads, kv_heads, groups, block = (int(str(node.attrs[n])) for n in ("num_heads", "num_kv_heads", "groups", "block"))
    check_numbers(node, builder, 3)
    layer, scale = int(str(node.attrs["layer"])), float(str(node.attrs["scale"]))
    sources, target = [builder.read(name) for name in node.inputs], builder.write(node.outputs[0])
    layouts, width = builder.layouts, builder.width(node.outputs[0])

    def run(frame: Frame) -> None:
        assert frame.cache is not None and frame.whole is not None
        batch, keys, values = frame.whole, frame.cache.keys[layer], frame.cache.values[layer]
        q, k, v, chosen = (frame.registers[source] for source in sources)
        layouts.keys.write(keys, k[: batch.tokens].view(batch.tokens, kv_heads, -1).to(keys.dtype), batch)
        layouts.values.write(values, v[: batch.tokens].view(batch.tokens, kv_heads, -1).to(values.dtype), batch)
        results, rows = [], 0
        for row, first, count, new in runs(frame):
            rows = row + count * new
            tables = batch.block_tables.narrow(0, first, count)
            every, each = (
                form.gather(cache, tables).to(q.dtype).repeat_interleave(heads // kv_heads, 1)
                for form, cache in ((layouts.keys, keys), (layouts.values, values))
            )  # [B, Hq, total, D]
            own = q.narrow(0, row, count * new).view(count, new, heads, -1).transpose(1, 2)
            picked = chosen.narrow(0, row, count * new).view(count, new, -1)
            places, wide = places_of(frame, first, count, new), batch.slots.dtype is torch.int64
            mask = seen(picked, groups, block, every.shape[2], places, wide).repeat_interleave(heads // groups, 1)
            y = functional.scaled_dot_product_attention(own, every, each, mask, scale=scale)
            results.append(y.transpose(1, 2).reshape(count * new, -1))
        frame.registers[target] = filled(results, frame.tokens - rows, width, q.dtype)

    builder.emit(run)
    return "torch scaled_dot_product_attention, masked"


def _best(score: Tensor, many: int, numbers: Tensor) -> Tensor:
    """Of score [.., blocks]: the numbers of the best, ascending, NOWHERE for those of score -inf: [.., many] f32."""
    best, index = torch.sort(score, dim=3, descending=True, stable=True)
    found = index.narrow(3, 0, many).to(torch.float32)
    return torch.sort(found.masked_fill(best.narrow(3, 0, many) == float("-inf"), NOWHERE), dim=3).values


def _best_by_comparing(score: Tensor, many: int, numbers: Tensor) -> Tensor:
    """The same for chips without 64-bit integers, which PyTorch sorts and scatters with; its work grows squared."""
    mine, other = score[..., None], score[..., None, :]
    before = (other > mine) | ((other == mine) & (numbers < numbers[:, None]))
    chosen = (before.to(torch.float32).sum(4) < many) & (score > float("-inf"))
    place = torch.cumsum(chosen.to(torch.float32), 3)  # from 1
    slot = torch.arange(1, many + 1, dtype=torch.float32, device=score.device)
    at = (place[..., None, :] == slot[:, None]) & chosen[..., None, :]  # [.., many, blocks]
    found = (at.to(torch.float32) * numbers).sum(4)
    return found.masked_fill(at.to(torch.float32).sum(4) == 0, NOWHERE)


def check_numbers(node: Node, builder: Builder, place: int) -> None:
    """Raises Unsupported where input number `place`, of whole numbers, came rounded."""
    if builder.part.values[node.inputs[place]].kind == "input" and builder.dtype is not torch.float32:
        why = f"numbers of blocks would cross to this device as {builder.dtype}; select_keys should run on it too"
        raise Unsupported(builder.target.name, f"node `{node.name}`: {why}", reasons=[(node.name, why)])


def seen(chosen: Tensor, groups: int, block: int, total: int, places: Tensor, wide: bool) -> Tensor:
    """Chosen [B, n, G*K] f32, places [B, n, 1] -> which keys are seen, [B, G, n, total] bool."""
    count, new = chosen.shape[:2]
    blocks = -(-total // block)
    numbers = chosen.view(count, new, groups, -1).transpose(1, 2)
    if wide:
        numbers = numbers.masked_fill((numbers < 0) | (numbers > blocks), float(blocks)).to(torch.int64)
        marks = torch.zeros((count, groups, new, blocks + 1), dtype=torch.float32, device=chosen.device)
        marks = marks.scatter(3, numbers, 1.0).narrow(3, 0, blocks)  # what nobody chose fell behind the last
    else:
        each = torch.arange(blocks, dtype=torch.float32, device=chosen.device)
        marks = (numbers[..., None] == each).to(torch.float32).amax(3)
    keys = marks.repeat_interleave(block, 3).narrow(3, 0, total) > 0.5
    every = torch.arange(total, dtype=torch.int32, device=chosen.device)
    return keys & (every <= places)[:, None]


def places_of(frame: Frame, first: int, count: int, new: int) -> Tensor:
    """Places of the new tokens in their sequences, [B, n, 1] i32."""
    assert frame.whole is not None
    lens = frame.whole.context_lens.narrow(0, first, count)
    back = torch.arange(new - 1, -1, -1, dtype=torch.int32, device=lens.device)
    return (lens[:, None] - 1 - back)[:, :, None]


def filled(results: list[Tensor], padding: int, width: int, dtype: torch.dtype) -> Tensor:
    """All rows, zeros for padding."""
    if padding:
        results.append(torch.zeros((padding, width), dtype=dtype, device=results[0].device))
    return results[0] if len(results) == 1 else torch.cat(results)
