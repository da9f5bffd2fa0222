"""Mixture of experts, in two forms, neither of which waits for the host in the middle of a step unless it is the host.

grouped   on the processor: tokens by expert, only the chosen ones are read
gathered  elsewhere, few tokens: the chosen experts' matrices are gathered, one product per token and choice
dense     elsewhere, many tokens: every expert runs on every token, and the weights of those not chosen are 0
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from datong.backends.torch.builder import Builder
from datong.backends.torch.frame import Frame
from datong.backends.torch.lower.elementwise import gated
from datong.spec.program import Node

TINY = 1e-20  # added to the sum of sigmoid weights, as the definition does


@dataclass(frozen=True)
class _Stacks:
    """What the experts are made of, on the device."""

    gate: Tensor  # [E, m, n]
    up: Tensor | None
    down: Tensor
    gate_bias: Tensor | None
    up_bias: Tensor | None
    down_bias: Tensor | None
    order: str
    act: Callable[[Tensor, Tensor], Tensor]

    def halves(self, both: Tensor) -> tuple[Tensor, Tensor]:
        """Gate and up of a product [..., 2 I] that holds both."""
        if self.order == "pairs":
            return both[..., ::2], both[..., 1::2]
        first, second = both.chunk(2, -1)
        return first, second

    def one(self, x: Tensor, e: int) -> Tensor:
        """Expert number e on rows x [t, n] -> [t, n]."""
        bias = [None if b is None else b[e] for b in (self.gate_bias, self.up_bias, self.down_bias)]
        first = torch.nn.functional.linear(x, self.gate[e], bias[0])
        if self.up is None:
            inner = self.act(*self.halves(first))
        else:
            inner = self.act(first, torch.nn.functional.linear(x, self.up[e], bias[1]))
        return torch.nn.functional.linear(inner, self.down[e], bias[2])

    def batched(self, x: Tensor, index: Tensor | None) -> Tensor:
        """Experts side by side: x [1 or B, t, n]; `index` [B] chooses them, None: all -> [B, t, n]."""

        def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            if index is not None:
                weight = weight.index_select(0, index)
                bias = None if bias is None else bias.index_select(0, index)
            y = torch.matmul(x, weight.transpose(1, 2))
            return y if bias is None else y + bias[:, None]

        first = product(x, self.gate, self.gate_bias)
        second = None if self.up is None else product(x, self.up, self.up_bias)
        inner = self.act(*self.halves(first)) if second is None else self.act(first, second)
        return product(inner, self.down, self.down_bias)


@dataclass(frozen=True)
class _Router:
    """spec/reference.py `route`."""

    select_bias: Tensor | None
    top_k: int
    score: str
    renorm: bool
    scale: float
    groups: int
    top_groups: int

    def __call__(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [T, E] -> chosen [T, K], weights [T, K] f32. Of equals the lowest index: sorts are stable."""
        logits = logits.float()
        score = logits.softmax(1) if self.score == "softmax" else logits.sigmoid()
        choice = score if self.select_bias is None else score + self.select_bias
        if self.groups > 1:
            members = choice.view(len(choice), self.groups, -1)
            best = members.topk(2, 2)[0].sum(2)
            chosen = _largest(best, self.top_groups)
            shut = torch.ones_like(best).scatter(1, chosen, 0.0)[:, :, None]
            choice = members.masked_fill(shut > 0.5, float("-inf")).flatten(1)
        index = _largest(choice, self.top_k)
        weights = score.gather(1, index)
        if self.renorm:
            weights = weights / (weights.sum(1, keepdim=True) + (TINY if self.score == "sigmoid" else 0.0))
        return index, weights * self.scale


def _largest(x: Tensor, count: int) -> Tensor:
    """Indices of the largest of each row, best first."""
    return torch.sort(x, dim=1, descending=True, stable=True)[1][:, :count]


def moe(node: Node, builder: Builder) -> str:
    """Router and experts."""
    names = (*node.inputs, *[""] * 9)[:9]
    x, logits = builder.read(names[0]), builder.read(names[1])

    def weight(name: str, dtype: torch.dtype | None = None) -> Tensor | None:
        return builder.weights.get(name, dtype) if name else None

    gate, down = builder.weights.get(names[2]), builder.weights.get(names[4])
    stacks = _Stacks(
        gate, weight(names[3]), down, weight(names[6]), weight(names[7]), weight(names[8]),
        str(node.attrs.get("order", "split")), gated(node),
    )  # fmt: skip
    attrs = node.attrs
    router = _Router(
        weight(names[5], torch.float32), int(str(attrs["top_k"])), str(attrs["score"]), attrs["renorm"] == 1,
        float(str(attrs["scale"])), int(str(attrs.get("groups", 1))), int(str(attrs.get("top_groups", 1))),
    )  # fmt: skip
    target, experts = builder.write(node.outputs[0]), gate.shape[0]
    on_host = builder.target.device == "cpu"

    def run(frame: Frame) -> None:
        rows = frame.registers[x]
        index, weights = router(frame.registers[logits])
        if on_host:
            frame.registers[target] = _grouped(stacks, rows, index, weights)
        elif index.numel() <= experts:
            frame.registers[target] = _gathered(stacks, rows, index, weights)
        else:
            frame.registers[target] = _dense(stacks, rows, index, weights)

    builder.emit(run)
    return "torch sort, linear by expert" if on_host else "torch sort, matmul of gathered or all experts"


def _grouped(stacks: _Stacks, x: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    for e in sorted(set(index.flatten().tolist())):
        token, place = torch.nonzero(index == e, as_tuple=True)
        part = stacks.one(x.index_select(0, token), e)
        y.index_add_(0, token, part * weights[token, place, None].to(part.dtype))
    return y


def _gathered(stacks: _Stacks, x: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    repeated = x.repeat_interleave(index.shape[1], 0)[:, None]
    each = stacks.batched(repeated, index.flatten()).view(*index.shape, -1)
    return (each * weights[:, :, None].to(each.dtype)).sum(1)


def _dense(stacks: _Stacks, x: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    each = stacks.batched(x[None], None)  # [E, T, n]
    share = torch.zeros((len(x), each.shape[0]), dtype=each.dtype, device=x.device)
    share = share.scatter(1, index, weights.to(each.dtype))
    return (each * share.t()[:, :, None]).sum(0)
