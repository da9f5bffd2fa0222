"""The contract between the lowering and a vendor's fused operators: what a binding gets, and what it returns.

A descriptor lists a fused operator by its dotted name (`torch_npu.npu_rms_norm`); a binding of the same name in
`fused/` knows how to call it. It is used if the descriptor gives a schema of grade A or B for this generation, the
adapter really has the attribute, and `refuse` returns None; else the next one, and at last the composed form (lower/).

`implements` is an operator of spec/ops.py, or one of the three stages of attention. What `make` returns is called once
per step and layer with device tensors and must not touch the host (`.cpu()`, `.item()`, `.tolist()`):

    token-wise operators   (activations in the order of the node, without weights and constants) -> output | outputs
                           each [T, n] or [R, n] in the compute dtype, any row stride
    glu                    (gate, up), or (gate beside up [T, 2n],) where one product made both
    rope                   (x, *tables(cos, sin)) -> y         `tables` runs once per step, not once per layer
    attention.write        (key [T, Hkv, D], value [T, Hkv, Dv], key_cache, value_cache, batch) -> None
    attention.prefill      (query [N, Hq, D], key [N, Hkv, D], value [N, Hkv, Dv], key_cache, value_cache, batch)
                           -> [N, Hq, Dv] or [N, Hq*Dv]; the cache holds the new keys already
    attention.decode       (query [S, Hq, D], key_cache, value_cache, batch) -> [S, Hq, Dv] or [S, Hq*Dv]

`key_cache` and `value_cache` are one layer's, in the layout that the descriptor names (layouts.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from datong.chips.load import Chip
from datong.spec.program import Node, Value

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Call = Callable[..., Any]


@dataclass(frozen=True)
class Batch:
    """Sequences of a step, with their N tokens one after another. Numbers of the host cost no synchronisation.

    In a captured step (`static`) the numbers of the host are upper bounds, and only the tensors tell the truth.
    """

    sequences: int  # S
    tokens: int  # N; S when each has one new token
    new: tuple[int, ...]  # new tokens by sequence
    contexts: tuple[int, ...]  # tokens in the cache after this step, by sequence
    query_starts: Tensor  # [S + 1] i32
    context_lens: Tensor  # [S] i32
    block_tables: Tensor  # [S, M] i32; unused entries point at a block of padding
    slots: Tensor  # [N] i64 (i32 where the chip has no i64): block * block_size + place within the block
    slot_blocks: Tensor  # [N], the block of each slot, like slots
    slot_offsets: Tensor  # [N], the place within it
    static: bool = False

    @property
    def max_new(self) -> int:
        """Most new tokens of a sequence."""
        return max(self.new)

    @property
    def max_context(self) -> int:
        """Longest context, in tokens."""
        return max(self.contexts)


@dataclass(frozen=True)
class Terms:
    """What is settled before a node is lowered, so that a binding can refuse it."""

    chip: Chip
    dtype: torch.dtype  # of activations
    cache_dtype: torch.dtype
    block_size: int  # tokens per block of the cache
    layout: str = ""  # of the cache, a key of layouts.py
    index_dtype: str = "i64"  # of positions and slots: i32 where the chip has no i64
    dying: frozenset[str] = frozenset()  # inputs that nobody reads after this node: an operator may work in place


@dataclass(frozen=True)
class Context(Terms):
    """What a binding may use when it is made: once, at compile time."""

    operator: Call = field(kw_only=True)  # the vendor's operator
    values: Mapping[str, Value] = field(kw_only=True)
    weight: Callable[..., Tensor] = field(
        kw_only=True
    )  # (name, dtype=None) -> its device tensor, uploaded once; compute dtype unless given


Tables = Callable[["Tensor", "Tensor"], tuple["Tensor", ...]]


def _no_tables(node: Node, terms: Terms) -> Tables:
    return lambda cos, sin: (cos, sin)


@dataclass(frozen=True)
class Binding:
    """How one vendor operator is called."""

    implements: str
    refuse: Callable[[Node, Mapping[str, Value], Terms], str | None]  # why this node is not for it; None: it is
    make: Callable[[Node, Context], Call]
    # rope only: makes (cos [T, r/2] f32, sin) -> the tables as the operator wants them, in the dtype that it wants
    tables: Callable[[Node, Terms], Tables] = _no_tables
    capturable: bool = True  # False: it needs lengths on the host, so that a step with it cannot be replayed
