"""Which versions of torch, adapter and toolkit belong together, by the pairs that a descriptor lists."""

from __future__ import annotations

import re
from itertools import takewhile

from datong.chips.schema import Pair, Stack


def number(text: str | None) -> tuple[int, ...]:
    """`(2, 10, 0)` of `2.10.0.post4`, of `torch-npu 2.10.0+cpu`, of `CANN 9.1.0`; empty if there is none."""
    last = (text or "").split()[-1:] or [""]
    start = re.match(r"\D*?(\d+(?:\.\d+)*)", last[0].split("+")[0])
    return tuple(int(part[:9]) for part in start[1].split(".")) if start else ()


def same(a: str | None, b: str | None) -> bool:
    """Equal as far as both are given: `9.1` and `9.1.0`; a post release is the release."""
    left, right = number(a), number(b)
    size = min(len(left), len(right), 3)
    return size > 0 and left[:size] == right[:size]


def local(text: str | None) -> str:
    """What follows the plus sign: `metax3.8.0.7`."""
    return (text or "").partition("+")[2]


def best_pair(stack: Stack, torch: str | None, toolkit: str | None) -> Pair | None:
    """The published pair for what is installed: the toolkit counts first, since it is the hardest to change.

    Among equals the newest torch. None without pairs of grade A or B.
    """
    pairs = [p for p in stack.toolkit.pairs if p.grade in ("A", "B")]

    def rank(pair: Pair) -> tuple[int, int, tuple[int, ...], tuple[int, ...]]:
        agree = len(list(takewhile(lambda x: x[0] == x[1], zip(number(pair.toolkit), number(toolkit), strict=False))))
        return agree, int(same(pair.torch, torch)), number(pair.torch), number(pair.adapter)

    return max(pairs, key=rank, default=None)


def fits(pair: Pair, torch: str | None, adapter: str | None, toolkit: str | None) -> bool:
    """Do the installed versions equal the pair's, where both are known?"""
    have = ((pair.torch, torch), (pair.adapter, adapter), (pair.toolkit, toolkit))
    return all(same(want, got) for want, got in have if number(want) and number(got))
