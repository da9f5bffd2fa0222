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

    def all(self, x: Tensor) -> Tensor:
        """Every expert on x [1, T, n] -> [E, T, n]."""

        def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
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

    def share(self, logits: Tensor) -> Tensor:
        """Logits [T, E] -> the weight of each expert, 0 where it is not chosen: [T, E] f32. Of equals the lowest index.

        No integers: some chips have 64-bit indices, which sorts give, only behind a switch.
        """
        logits = logits.float()
        score = logits.softmax(1) if self.score == "softmax" else logits.sigmoid()
        choice = score if self.select_bias is None else score + self.select_bias
        if self.groups > 1:
            members = choice.view(len(choice), self.groups, choice.shape[1] // self.groups)
            first = members.amax(2, keepdim=True)
            # the two best: the first of those equal to the maximum is taken out once
            top = _first(members >= first)
            best = first[:, :, 0] + members.masked_fill(top, float("-inf")).amax(2)
            choice = members.masked_fill(~_best(best, self.top_groups)[:, :, None], float("-inf")).flatten(1)
        weights = score * _best(choice, self.top_k)
        if self.renorm:
            weights = weights / (weights.sum(1, keepdim=True) + (TINY if self.score == "sigmoid" else 0.0))
        return weights * self.scale


def _best(x: Tensor, count: int) -> Tensor:
    """Is a value among the `count` largest of its row? [T, n] -> bool; of equals the first are."""
    above = x[:, None, :] > x[:, :, None]  # [T, i, j]: j beats i
    place = torch.arange(x.shape[1], dtype=torch.float32, device=x.device)
    before = (x[:, None, :] == x[:, :, None]) & (place < place[:, None])
    return (above | before).to(torch.float32).sum(2) < count


def _first(mask: Tensor) -> Tensor:
    """Only the first of the true ones along the last axis."""
    flags = mask.to(torch.float32)
    return mask & (flags.cumsum(-1) < 1.5)


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
        share = router.share(frame.registers[logits])
        frame.registers[target] = _grouped(stacks, rows, share) if on_host else _dense(stacks, rows, share)

    builder.emit(run)
    return "torch linear by expert" if on_host else f"torch matmul of all {experts} experts"


def _grouped(stacks: _Stacks, x: Tensor, share: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    for e in torch.nonzero((share != 0).any(0)).flatten().tolist():
        token = torch.nonzero(share[:, e]).flatten()
        part = stacks.one(x.index_select(0, token), e)
        y.index_add_(0, token, part * share[token, e, None].to(part.dtype))
    return y


def _dense(stacks: _Stacks, x: Tensor, share: Tensor) -> Tensor:
    each = stacks.all(x[None])  # [E, T, n]
    return (each * share.t()[:, :, None].to(each.dtype)).sum(0)
