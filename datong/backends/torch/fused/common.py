"""What the bindings share: facts of a node, tensors in the form that vendors want, and the reasons for a No.

A check returns the reason why an operator is not for a node, or None; `first` joins them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from datong.backends.torch.binding import Batch, Context, Terms
from datong.spec.program import Node, Value

HALVES = (torch.float16, torch.bfloat16)
FLOATS = (torch.float32, *HALVES)
Values = Mapping[str, Value]


def number(node: Node, name: str) -> float:
    """An attribute that is a number."""
    return float(str(node.attrs[name]))


def whole(node: Node, name: str) -> int:
    """An attribute that is a whole number."""
    return int(str(node.attrs[name]))


def width(values: Values, name: str) -> int:
    """Last dim of a value."""
    return int(values[name].shape[-1])


# ---- tensors ----------------------------------------------------------------------------------------------------


def norm_weight(node: Node, context: Context, name: str) -> Tensor:
    """Weight of a norm with its offset, [D], compute dtype; the sum in f32, for 1 + w in bf16 would lose most of w."""
    offset = number(node, "offset")
    if not offset:
        return context.weight(name)
    return (context.weight(name, torch.float32) + offset).to(context.dtype)


def own(x: Tensor, name: str, terms: Terms) -> Tensor:
    """A dense tensor that an operator may overwrite: x itself if nobody reads it again."""
    return x.clone(memory_format=torch.contiguous_format) if name not in terms.dying else x.contiguous()


def joined(gate: Tensor, up: Tensor | None) -> Tensor:
    """[T, n] twice -> [T, 2n], as vendors' gated activations want it; without `up`, gate is both already."""
    return gate if up is None else torch.cat((gate, up), -1)


def half(x: Tensor) -> Tensor:
    """Room for the result of a gated activation: [T, 2n] -> [T, n]."""
    return x.new_empty((x.shape[0], x.shape[1] // 2))


def positions(count: int, like: Tensor, terms: Terms) -> Tensor:
    """0 .. count-1: row numbers, for operators that look up cos and sin by position in tables that we have per row."""
    dtype = torch.int32 if terms.index_dtype == "i32" else torch.int64
    return torch.arange(count, dtype=dtype, device=like.device)


def cos_sin(node: Node, terms: Terms) -> Callable[[Tensor, Tensor], tuple[Tensor, ...]]:
    """Tables of the vLLM kind: row numbers [T], and cos beside sin [T, r] in the compute dtype."""

    def tables(cos: Tensor, sin: Tensor) -> tuple[Tensor, ...]:
        return positions(cos.shape[0], cos, terms), torch.cat((cos, sin), 1).to(terms.dtype)

    return tables


class OncePerStep:
    """A value made from the batch of a step, for all layers of it."""

    def __init__(self, make: Callable[[Batch], Any]) -> None:
        self._make, self._value = make, None
        self._batch: Batch | None = None

    def __call__(self, batch: Batch) -> Any:
        """The value; made when the batch is a new one."""
        if batch is not self._batch:
            self._batch, self._value = batch, self._make(batch)
        return self._value


# ---- reasons ----------------------------------------------------------------------------------------------------


def first(*reasons: str | None) -> str | None:
    """The first reason, if any."""
    return next((reason for reason in reasons if reason), None)


def dtype_is(terms: Terms, allowed: Collection[torch.dtype]) -> str | None:
    """Activations should have one of these types."""
    return None if terms.dtype in allowed else f"takes {_names(allowed)}, activations are {_names([terms.dtype])}"


def cache_is(terms: Terms, layout: str, *, multiple: int = 1, lowest: int = 1, highest: int = 1 << 30) -> str | None:
    """The cache should have this layout, these block sizes, and the type of the activations."""
    size = terms.block_size
    if terms.layout != layout:
        return f"reads a cache of layout `{layout}`, this one is `{terms.layout}`"
    if size % multiple or not lowest <= size <= highest:
        return f"takes blocks of {lowest} to {highest} tokens in steps of {multiple}, this cache has {size}"
    if terms.cache_dtype is not terms.dtype:
        return f"takes a cache of the activations' type, it is {_names([terms.cache_dtype])}"
    return None


def head_is(node: Node, values: Values, *, multiple: int = 1, highest: int = 1 << 30) -> str | None:
    """Heads of attention should have these sizes, keys and values the same."""
    dim, value_dim = head_dims(node, values)
    if dim != value_dim:
        return f"takes keys and values of one head size, they have {dim} and {value_dim}"
    if dim % multiple or dim > highest:
        return f"takes head sizes up to {highest} in steps of {multiple}, this one is {dim}"
    return None


def plain(node: Node, *, window: bool = False, softcap: bool = False) -> str | None:
    """Attention without what the operator cannot do: `window`, `softcap` say whether it can."""
    if not window and whole(node, "window"):
        return f"has no way to say a window of {whole(node, 'window')} tokens that its documents make clear"
    if not softcap and number(node, "softcap"):
        return "has no softcap"
    if any(node.inputs[3:]) or node.attrs.get("bias", "none") != "none":
        return "has neither sinks nor slopes that its documents make clear"
    return None


def silu_only(node: Node) -> str | None:
    """A gated activation of the plain kind."""
    kind, limit = node.attrs["kind"], float(str(node.attrs.get("limit", 0)))
    if kind != "silu" or limit:
        return f"knows silu without a limit, this is {kind}{f' with the limit {limit:g}' if limit else ''}"
    return None


def in_place(node: Node, terms: Terms, count: int) -> str | None:
    """Works in place: worth it only where nobody reads its inputs again, else the copies cost more than it saves."""
    read_again = [name for name in node.inputs[:count] if name not in terms.dying]
    return f"works in place, and `{read_again[0]}` is read again" if read_again else None


def whole_head(node: Node, values: Values) -> str | None:
    """Rope should rotate every channel of a head."""
    dim, rotated = width(values, node.inputs[0]) // whole(node, "num_heads"), 2 * width(values, node.inputs[1])
    return None if dim == rotated else f"rotates whole heads, here {rotated} of {dim} channels"


def head_dims(node: Node, values: Values) -> tuple[int, int]:
    """(head size of keys, of values) of an attention node."""
    return (
        width(values, node.inputs[1]) // whole(node, "num_kv_heads"),
        width(values, node.inputs[2]) // whole(node, "num_kv_heads"),
    )


def _names(dtypes: Collection[torch.dtype]) -> str:
    return " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
