"""What fused operators compute, as their vendors' documents write it, on host tensors: shared by several stacks.

Everything is computed in f32 and rounded once to the type of the input, as the vendors' kernels do. Written from the
formulas, not from our lowering, so that one checks the other.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from datong.backends.sim.rules import require


def rms(x: Tensor, weight: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
    """Norm over the last dim, and 1/rms: x [..., D], weight [D] -> [..., D] of the type of x, [..., 1] f32."""
    inverse = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + eps)
    y = x.float() * inverse
    return (y if weight is None else y * weight.float()).to(x.dtype), inverse


def silu_mul(x: Tensor) -> Tensor:
    """Swish of the first half of the last dim, times the second half: [..., 2n] -> [..., n]."""
    first, second = x.float().chunk(2, -1)
    return (first / (1 + torch.exp(-first)) * second).to(x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, *, neox: bool) -> Tensor:
    """Pairs of the first r channels by an angle: x [T, H, D], cos and sin [T, r/2] -> [T, H, D].

    neox: pairs (i, i + r/2); else (2i, 2i + 1).
    """
    half = cos.shape[1]
    y = x.float().clone()
    c, s = cos.float()[:, None], sin.float()[:, None]
    one, two = (slice(0, half), slice(half, 2 * half)) if neox else (slice(0, 2 * half, 2), slice(1, 2 * half, 2))
    a, b = x[..., one].float(), x[..., two].float()
    y[..., one], y[..., two] = a * c - b * s, b * c + a * s
    return y.to(x.dtype)


def attend(
    q: Tensor, k: Tensor, v: Tensor, scale: float, *, causal: bool, left: int = -1, softcap: float = 0.0
) -> Tensor:
    """One sequence: q [t, Hq, D] are its last t tokens, k [n, Hkv, D] and v [n, Hkv, Dv] all of them -> [t, Hq, Dv].

    left: keys that a query sees before its own place; -1: all. Not causal: it sees every key after its place too.
    """
    group = q.shape[1] // k.shape[1]
    keys, values = (t.float().repeat_interleave(group, 1) for t in (k, v))
    score = torch.einsum("thd,nhd->htn", q.float(), keys) * scale
    if softcap:
        score = softcap * torch.tanh(score / softcap)
    behind = torch.arange(k.shape[0] - q.shape[0], k.shape[0])[:, None] - torch.arange(k.shape[0])[None]
    hidden = torch.zeros(behind.shape, dtype=torch.bool)
    if causal:
        hidden |= behind < 0
    if left >= 0:
        hidden |= behind > left
    score = score.masked_fill(hidden, float("-inf"))
    return torch.einsum("htn,nhd->thd", torch.softmax(score, -1), values).to(q.dtype)


# ---- the paged cache ---------------------------------------------------------------------------------------------


def rows(cache: Tensor, table: Tensor, length: int, layout: str) -> Tensor:
    """The first `length` tokens of a sequence, [length, H, D], from a cache in the named layout, by its table [M]."""
    size = {"nhd": 1, "hnd": 2, "keys_by_x": 3, "values_by_channel": 3}[layout]
    blocks = cache[table[: -(-length // cache.shape[size])].long()]
    if layout == "hnd":  # [m, H, bs, D]
        blocks = blocks.transpose(1, 2)
    elif layout == "keys_by_x":  # [m, H, D/x, bs, x]
        blocks = blocks.permute(0, 3, 1, 2, 4).flatten(3)
    elif layout == "values_by_channel":  # [m, H, D, bs]
        blocks = blocks.permute(0, 3, 1, 2)
    return blocks.flatten(0, 1)[:length]


def check_slots(operator: str, slots: Tensor, blocks: int, size: int, source: str) -> None:
    """Slots lie in the cache."""
    inside = not slots.numel() or (int(slots.min()) >= 0 and int(slots.max()) < blocks * size)
    came = f"they run from {int(slots.min())} to {int(slots.max())}" if slots.numel() else ""
    require(inside, operator, f"should have slots within the cache's {blocks * size}", came, source)


def check_tables(operator: str, tables: Tensor, lens: Sequence[int], blocks: int, size: int, source: str) -> None:
    """Tables of blocks are wide enough for the lengths, and name blocks of the cache."""
    widest = max((-(-n // size) for n in lens), default=0)
    came = f"it is {list(tables.shape)}"
    fits = tables.dim() == 2 and tables.shape[0] == len(lens) and tables.shape[1] >= widest
    require(fits, operator, f"should have a block table of at least [{len(lens)}, {widest}]", came, source)
    for table, length in zip(tables, lens, strict=True):
        used = table[: -(-length // size)]
        bad = used[(used < 0) | (used >= blocks)]
        came = f"it names block {int(bad[0])}" if bad.numel() else ""
        require(not bad.numel(), operator, f"should have a block table of blocks 0 to {blocks - 1}", came, source)


# ---- operands ----------------------------------------------------------------------------------------------------


def short(dtype: torch.dtype) -> str:
    """`float16`."""
    return str(dtype).removeprefix("torch.")


def check_types(operator: str, allowed: Sequence[torch.dtype], source: str, **tensors: Tensor) -> None:
    """All of one allowed type."""
    first = next(iter(tensors.values())).dtype
    for name, tensor in tensors.items():
        rule = f"should have {name} of type {' or '.join(map(short, allowed))}, the same for all"
        fits = tensor.dtype in allowed and tensor.dtype is first
        require(fits, operator, rule, f"it is {short(tensor.dtype)}", source)


def check_dense(operator: str, source: str, **tensors: Tensor) -> None:
    """All contiguous."""
    for name, tensor in tensors.items():
        strides = f"its strides are {list(tensor.stride())} for {list(tensor.shape)}"
        require(tensor.is_contiguous(), operator, f"should have a contiguous {name}", strides, source)
