"""Attention over the paged cache, in three stages, each the vendor's operator or composed: write, prefill, decode.

    write     every new key and value into its slot, once for the whole step
    prefill   sequences with several new tokens, one after another
    decode    sequences with one: in one batch over gathered blocks, or one by one where keys can be read in place

The composed form is PyTorch's scaled_dot_product_attention; with a softcap, sinks or a bias by distance, which that
lacks, their definition.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from datong.backends.torch.binding import Batch
from datong.backends.torch.builder import Builder
from datong.backends.torch.frame import Frame, Reach
from datong.backends.torch.layouts import Pair
from datong.spec.caches import caches_of
from datong.spec.program import Node

_SDPA = functional.scaled_dot_product_attention
# PyTorch's attention on the processor computes whole blocks of 512 keys, also those that causality hides. Measured with
# 9 heads of 64 channels, 512 new tokens, one thread of an AMD EPYC: 8.9 ms at once, 5.6 by 32, 5.8 by 64, 7.1 by 128.
ROWS = 64


@dataclass(frozen=True)
class _Form:
    """One attention node."""

    layer: int
    heads: int
    kv_heads: int
    scale: float
    window: int
    softcap: float
    layouts: Pair
    rounds: bool  # the cache's dtype is not that of the activations
    sinks: Tensor | None = None  # [Hq]
    slopes: Tensor | None = None  # [Hq] f32
    bias: str = "none"
    rows: int = 0  # new tokens of a sequence that are computed at once; 0: all

    @property
    def plain(self) -> bool:
        """Can PyTorch's operator say it?"""
        return not self.softcap and self.sinks is None and self.slopes is None

    # ---- keys and values of a sequence -------------------------------------------------------------------------

    def seen(self, cache: tuple[Tensor, Tensor], reach: Reach, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """What a sequence sees: keys [1, Hkv, length, D], values [1, Hkv, length, Dv]."""
        found = []
        for tensor, layout in zip(cache, (self.layouts.keys, self.layouts.values), strict=True):
            if reach.table is None:
                rows = layout.span(tensor, reach.start, reach.length)
            else:
                rows = layout.gather(tensor, reach.table).narrow(2, reach.skip, reach.length)
            found.append(rows.to(dtype) if self.rounds else rows)
        return found[0], found[1]

    # ---- stages ------------------------------------------------------------------------------------------------

    def write(self, key: Tensor, value: Tensor, keys: Tensor, values: Tensor, batch: Batch) -> None:
        """Stage one."""
        if self.rounds:
            key, value = key.to(keys.dtype), value.to(values.dtype)
        self.layouts.keys.write(keys, key, batch)
        self.layouts.values.write(values, value, batch)

    def prefill(self, q: Tensor, key: Tensor, value: Tensor, cache: tuple[Tensor, Tensor], frame: Frame) -> Tensor:
        """Stage two: q [N, Hq, D] of the sequences with several new tokens -> [N, Hq, Dv]."""
        results, row = [], 0
        for reach in frame.reaches[self.window]:
            if reach.new == 1:
                continue
            mine = slice(row, row + reach.new)
            row += reach.new
            if reach.fresh and not self.rounds:
                k, v = key[mine].transpose(0, 1)[None], value[mine].transpose(0, 1)[None]
            else:
                k, v = self.seen(cache, reach, q.dtype)
            cut = 0 < self.rows < reach.new and self.plain
            causal = reach.fresh and (not self.window or reach.new <= self.window) and not cut
            if not causal and reach.mask is None:
                reach.mask = _mask(reach, self.window, q)
            if cut and reach.mask is not None:
                results.append(self.in_turn(q[mine].transpose(0, 1)[None], k, v, reach.mask)[0].transpose(0, 1))
                continue
            far = None
            if self.slopes is not None:
                query = torch.arange(reach.length - reach.new, reach.length, dtype=torch.int32, device=q.device)
                far = query[:, None] - torch.arange(k.shape[2], dtype=torch.int32, device=q.device)
            y = self.attend(q[mine].transpose(0, 1)[None], k, v, None if causal else reach.mask, causal, far)
            results.append(y[0].transpose(0, 1))
        return results[0] if len(results) == 1 else torch.cat(results)

    def in_turn(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """Some new tokens at a time, each time with no more keys than the last of them sees."""
        new, length = mask.shape
        results = []
        for start in range(0, new, self.rows):
            stop = min(start + self.rows, new)
            seen = length - new + stop
            own = q[:, :, start:stop], k[:, :, :seen], v[:, :, :seen], mask[start:stop, :seen]
            results.append(self.attend(*own, False, None))
        return torch.cat(results, 2)

    def decode_each(self, q: Tensor, cache: tuple[Tensor, Tensor], frame: Frame) -> Tensor:
        """Stage three, one by one: q [S, Hq, D] -> [S, Hq, Dv]. Every key that is seen counts, so there is no mask."""
        results = []
        for row, reach in enumerate(r for r in frame.reaches[self.window] if r.new == 1):
            k, v = self.seen(cache, reach, q.dtype)
            far = None
            if self.slopes is not None:
                far = torch.arange(k.shape[2] - 1, -1, -1, dtype=torch.int32, device=q.device)
            y = self.attend(q[row].view(1, self.kv_heads, -1, q.shape[2]), k, v, None, False, far)
            results.append(y.reshape(1, self.heads, -1))
        return results[0] if len(results) == 1 else torch.cat(results)

    def decode_batch(self, q: Tensor, cache: tuple[Tensor, Tensor], frame: Frame, batch: Batch) -> Tensor:
        """Stage three, at once: all blocks of the tables are gathered, and a mask hides what is not the sequence's."""
        k = self.layouts.keys.gather(cache[0], batch.block_tables)
        v = self.layouts.values.gather(cache[1], batch.block_tables)
        if self.rounds:
            k, v = k.to(q.dtype), v.to(q.dtype)
        mask = frame.masks.get(self.window)
        if mask is None:
            mask = frame.masks[self.window] = _batch_mask(batch, k.shape[2], self.window, q)
        far = None
        if self.slopes is not None:
            place = torch.arange(k.shape[2], dtype=torch.int32, device=q.device)
            far = (batch.context_lens[:, None] - 1 - place)[:, None, None]
        y = self.attend(q.view(len(q), self.kv_heads, -1, q.shape[2]), k, v, mask, False, far)
        return y.reshape(len(q), self.heads, -1)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, far: Tensor | None) -> Tensor:
        """Scores, softmax, values.

        q [S, H, t, D] (t new tokens of Hq heads, or one token's heads in the groups of Hkv), k [S, Hkv, n, D],
        v [S, Hkv, n, Dv]; mask is added to scores; far [.., n] is how far each key lies behind -> [S, H, t, Dv].
        """
        if self.plain:
            grouped = q.shape[1] != k.shape[1]
            return _SDPA(q, k, v, attn_mask=mask, is_causal=causal, scale=self.scale, enable_gqa=grouped)
        group, per_head = q.shape[1] // k.shape[1], (1, q.shape[1], -1, 1)
        if group > 1:
            k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        score = (q @ k.transpose(2, 3)).to(torch.float32) * self.scale
        if self.softcap:
            score = torch.tanh(score / self.softcap) * self.softcap
        if far is not None and self.slopes is not None:
            distance = far.clamp(min=0).to(torch.float32)
            distance = distance.sqrt() if self.bias == "sqrt_alibi" else distance
            score = score - self.slopes.view(per_head) * distance
        if causal:
            mask = torch.full(score.shape[2:], float("-inf"), dtype=score.dtype, device=score.device).triu(1)
        if mask is not None:
            score = score + mask
        if self.sinks is None:
            return score.softmax(3).to(v.dtype) @ v
        column = self.sinks.to(torch.float32).view(per_head).expand(score.shape[0], -1, score.shape[2], 1)
        return torch.cat([score, column], 3).softmax(3)[..., :-1].to(v.dtype) @ v


def _mask(reach: Reach, window: int, like: Tensor) -> Tensor:
    """[new, length]: 0 where a new token sees a key, else minus infinity."""
    query = torch.arange(reach.length - reach.new, reach.length, dtype=torch.int32, device=like.device)[:, None]
    key = torch.arange(reach.length, dtype=torch.int32, device=like.device)[None]
    hidden = key > query
    if window:
        hidden = hidden | (key <= query - window)
    return torch.zeros(hidden.shape, dtype=like.dtype, device=like.device).masked_fill_(hidden, float("-inf"))


def _batch_mask(batch: Batch, length: int, window: int, like: Tensor) -> Tensor:
    """[S, 1, 1, length], likewise for one new token per sequence."""
    place = torch.arange(length, dtype=torch.int32, device=like.device)[None]
    lens = batch.context_lens[:, None]
    hidden = place >= lens
    if window:
        hidden = hidden | (place < lens - window)
    zeros = torch.zeros(hidden.shape, dtype=like.dtype, device=like.device)
    return zeros.masked_fill_(hidden, float("-inf"))[:, None, None]


def attention(node: Node, builder: Builder) -> str:
    """Emit the three stages as one call."""
    attrs = node.attrs
    form = _Form(
        int(str(attrs["layer"])),
        int(str(attrs["num_heads"])),
        int(str(attrs["num_kv_heads"])),
        float(str(attrs["scale"])),
        int(str(attrs["window"])),
        float(str(attrs["softcap"])),
        builder.layouts,
        builder.cache_dtype is not builder.dtype,
        builder.weights.get(node.inputs[3]) if len(node.inputs) > 3 and node.inputs[3] else None,
        _vector(builder, node.inputs[4]) if len(node.inputs) > 4 and attrs.get("bias", "none") != "none" else None,
        str(attrs.get("bias", "none")),
        ROWS if builder.target.device == "cpu" else 0,
    )
    chosen = {stage: builder.vendor(f"attention.{stage}", node) for stage in ("write", "prefill", "decode")}
    write, prefill, decode = (found[2] if found else None for found in chosen.values())
    q, k, v = (builder.read(name) for name in node.inputs[:3])
    target, width = builder.write(node.outputs[0]), builder.width(node.outputs[0])
    kind = caches_of(node, builder.part.values)[0].kind
    put, dims = write or form.write, (builder.width(node.inputs[0]) // form.heads, width // form.heads)

    def fill(q: Tensor, key: Tensor, value: Tensor, cache: tuple[Tensor, Tensor], frame: Frame) -> Tensor:
        if prefill is None:
            return form.prefill(q, key, value, cache, frame)
        result: Tensor = prefill(q, key, value, *cache, frame.prefill)
        return result

    def step(q: Tensor, cache: tuple[Tensor, Tensor], frame: Frame, batch: Batch) -> Tensor:
        if decode is not None:
            result: Tensor = decode(q, *cache, batch)
            return result
        if builder.one_by_one:
            return form.decode_each(q, cache, frame)
        return form.decode_batch(q, cache, frame, batch)

    def run(frame: Frame) -> None:
        registers, frame = frame.registers, frame.of(kind)
        assert frame.cache is not None and frame.whole is not None
        cache = frame.cache.keys[form.layer], frame.cache.values[form.layer]
        query = registers[q].view(-1, form.heads, dims[0])
        key, value = registers[k].view(-1, form.kv_heads, dims[0]), registers[v].view(-1, form.kv_heads, dims[1])
        put(key, value, *cache, frame.whole)
        if frame.decode is frame.whole:
            y = step(query, cache, frame, frame.whole)
        elif frame.prefill is frame.whole:
            y = fill(query, key, value, cache, frame)
        else:
            y = _mixed(query, key, value, cache, frame, dims[1], fill, step)
        registers[target] = y.reshape(-1, width)

    builder.emit(run)
    exact = form.softcap or form.sinks is not None or form.slopes is not None
    return _name(chosen, "torch matmul, softmax" if exact else "torch scaled_dot_product_attention")


def _vector(builder: Builder, name: str) -> Tensor:
    """A weight or a constant [n], f32."""
    if builder.part.values[name].kind == "const":
        return builder.weights.constant(name)
    return builder.weights.get(name, torch.float32)


def _mixed(
    q: Tensor,
    key: Tensor,
    value: Tensor,
    cache: tuple[Tensor, Tensor],
    frame: Frame,
    dim: int,
    fill: Callable[..., Tensor],
    step: Callable[..., Tensor],
) -> Tensor:
    """Both kinds of sequences in one step, or padding: each kind's rows out, and its results back in."""
    y = torch.zeros((len(q), q.shape[1], dim), dtype=q.dtype, device=q.device)
    if frame.prefill is not None and frame.prefill_rows is not None:
        rows = frame.prefill_rows
        mine = fill(q.index_select(0, rows), key.index_select(0, rows), value.index_select(0, rows), cache, frame)
        y[rows] = mine.reshape(-1, q.shape[1], dim)
    if frame.decode is not None and frame.decode_rows is not None:
        rows = frame.decode_rows
        y[rows] = step(q.index_select(0, rows), cache, frame, frame.decode).reshape(-1, q.shape[1], dim)
    return y


def _name(chosen: dict[str, Any], composed: str) -> str:
    """What `placement` shows."""
    vendors: dict[str, str] = {stage: found[0] for stage, found in chosen.items() if found}
    if len(vendors) < len(chosen):
        vendors["attention" if not vendors else "rest"] = composed
    if len(vendors) == 1:
        return next(iter(vendors.values()))
    return ", ".join(f"{name} ({stage})" for stage, name in vendors.items())
