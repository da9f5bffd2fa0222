"""The program: what the compiler makes of a graph and a backend runs. Plain data, no tensors, JSON-able.

A program works on *flattened tokens*: the T new tokens of all running sequences, one after another. Only `attention`
(and later the state operators) looks across tokens; the sequence metadata of a `Step` tells it where. R is the number
of token rows whose logits were asked for.

    Program = parts in order;  Part = values + nodes for one backend;  weights cross as (file, offset, length)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

TOKENS = "T"  # leading dim of a value: new tokens of the step
ROWS = "R"  # leading dim of a value: rows whose logits are wanted

Attr = int | float | str | tuple[int, ...] | tuple[float, ...]
Dim = int | str


@dataclass(frozen=True)
class Piece:
    """One stored tensor of a weight: where its bytes lie."""

    role: str  # spec/formats.py: codes, scale, min, super_scale, super_min
    file: str  # relative to the package directory
    offset: int  # bytes from the start of the file
    length: int  # bytes
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Value:
    """One edge of the program.

    kind: `input` (comes from the step or an earlier part), `weight`, `const` (small, held in `data`), `temp`.
    shape: for activations the first dim is TOKENS or ROWS; weights have plain ints, the *logical* `[out, in]`.
    Experts are stacked, `[E, out, in]`; their pieces lie together, `[E, …]`, or apart: E times the pieces of one, in
    order. `swapped`: plain pieces are stored with the last two dims exchanged, `[…, in, out]`.
    """

    name: str
    kind: str
    dtype: str  # f32, i64 …; for a weight the dtype that it stands for: f32
    shape: tuple[Dim, ...]
    format: str = ""  # weight: key into spec.formats.BY_NAME
    pieces: tuple[Piece, ...] = ()
    data: tuple[float, ...] | tuple[int, ...] = ()  # const, row-major
    swapped: bool = False


def expert(stack: Value, index: int) -> Value:
    """One expert of a stack: the weight `[out, in]`, with its own pieces. `index` lies in 0..E-1."""
    count = stack.shape[0]
    assert isinstance(count, int)
    roles = len(dict.fromkeys(piece.role for piece in stack.pieces))
    if len(stack.pieces) == roles:  # together
        pieces = tuple(
            replace(p, offset=p.offset + index * (p.length // count), length=p.length // count, shape=p.shape[1:])
            for p in stack.pieces
        )
    else:
        pieces = stack.pieces[index * roles : (index + 1) * roles]
    return replace(stack, name=f"{stack.name}[{index}]", shape=stack.shape[1:], pieces=pieces)


@dataclass(frozen=True)
class Node:
    """One operator call. An absent optional input is the empty string."""

    op: str
    name: str  # unique; names of the graph nodes it came from, for people
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: Mapping[str, Attr] = field(default_factory=dict)


@dataclass(frozen=True)
class CacheSpec:
    """What one layer remembers; a layer has at most one cache of each kind.

    kind, and what is kept:

        full      keys [kv_heads, key_dim] and values [kv_heads, value_dim] of every token, in blocks
        window    as `full`, of the last `window` tokens; blocks from `Step.window_tables`
        latent    one row [key_dim] per token, in blocks: the key of the only head, and its first value_dim channels
                  are the value as well (kv_heads 1; MLA)
        index     keys [kv_heads, key_dim] per token, in blocks; value_dim 0 (sparse attention's indexer)
        recurrent f32 [kv_heads, key_dim, value_dim] per sequence, whatever its length (linear attention)
        conv      f32 [kv_heads=1, key_dim channels, value_dim tokens] per sequence: the last inputs of a short
                  convolution, oldest first
    """

    layer: int
    kind: str
    kv_heads: int
    key_dim: int
    value_dim: int
    window: int = 0  # tokens; 0: unlimited


STATE_KINDS = frozenset({"recurrent", "conv"})  # of CacheSpec: per sequence, not per token


@dataclass(frozen=True)
class Slot:
    """Where a temp lives: `arena` TOKENS or ROWS; address = offset * capacity(arena). Bytes per leading unit."""

    arena: str
    offset: int
    size: int


@dataclass(frozen=True)
class Part:
    """A run of nodes for one backend."""

    backend: str
    values: Mapping[str, Value]
    nodes: tuple[Node, ...]
    inputs: tuple[str, ...]  # `ids` [T] i64, `positions` [T] i64, `rows` [R] i64, or outputs of earlier parts
    outputs: tuple[str, ...]
    caches: tuple[CacheSpec, ...]  # of the attention nodes in this part, by layer
    slots: Mapping[str, Slot] = field(default_factory=dict)  # temps and outputs; from compiler/memory.py
    arena_bytes: Mapping[str, int] = field(default_factory=dict)  # arena -> bytes per leading unit
    graph: str = ""  # absolute path of the graph.onnx that this part is the whole of; "": a piece, or made by hand


@dataclass(frozen=True)
class Program:
    """A compiled package."""

    package: str  # absolute directory that Piece.file is relative to
    parts: tuple[Part, ...]
    vocab_size: int
    context_length: int
    refusals: tuple[tuple[str, str, str], ...] = ()  # (backend, node, reason): every No on the way


@dataclass
class Step:
    """The T new tokens of S sequences, and what attention must know of them. All arrays C-contiguous.

    Tokens of sequence s are rows query_starts[s] : query_starts[s+1]; its cache holds context_lens[s] tokens *after*
    this step, so its first new token has position context_lens[s] - (new tokens of s) when positions run from 0.
    Token at position p lies in block block_tables[s, p // block_size], slot p % block_size. Caches of kind
    `window` have blocks of their own, which are given back when the last token that sees them has run: `window_tables`.

    The state caches of sequence s are in slot state_slots[s]: read unless the first new token has position 0 (then the
    state is zero), and written at the end of the step.
    """

    ids: np.ndarray  # [T] i64
    positions: np.ndarray  # [T] i64
    query_starts: np.ndarray  # [S + 1] i64
    context_lens: np.ndarray  # [S] i64
    block_tables: np.ndarray  # [S, M] i32; unused entries -1
    rows: np.ndarray  # [R] i64, tokens whose logits are wanted; R may be 0
    window_tables: np.ndarray | None = None  # [S, M] i32, -1 where no window reaches; None: as block_tables
    state_slots: np.ndarray | None = None  # [S] i32; None where the program has no state caches
