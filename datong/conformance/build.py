"""Parts made by hand, with random weights in a real file: what the op cases run, and what tests of backends use.

    with PartBuilder(seed=1) as b:
        x = b.input("x", (TOKENS, 64))
        y = b.node("linear", [x, b.weight("w", "q4_0", (8, 64))], [("y", (TOKENS, 8))])
        part = b.part([y])

Weights are random *codes* and scales, not quantised numbers: every code of a format occurs, no quantiser is needed.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datong import dtypes
from datong.spec import formats
from datong.spec.formats import Format
from datong.spec.program import ROWS, TOKENS, Attr, CacheSpec, Dim, Node, Part, Piece, Slot, Value
from datong.spec.reference import dequantise

Array = NDArray[Any]

FILE = "model.safetensors"  # a bare run of bytes here: backends read offsets, not headers


class PartBuilder:
    """Collects values, nodes and weights; the weights lie in `FILE` of a temporary directory until `close`."""

    def __init__(self, seed: int, backend: str = "") -> None:
        self.rng = np.random.default_rng(seed)
        self.backend = backend
        self.values: dict[str, Value] = {}
        self.nodes: list[Node] = []
        self.caches: list[CacheSpec] = []
        self.arrays: dict[str, Array] = {}  # what each weight stands for, f32
        self._bytes = bytearray(b"\0" * 3)  # an odd start: pieces need not be aligned
        self._directory = tempfile.TemporaryDirectory(prefix="datong-part-")

    def __enter__(self) -> PartBuilder:
        return self

    def __exit__(self, *exc: object) -> None:
        self._directory.cleanup()

    def input(self, name: str, shape: tuple[Dim, ...], dtype: str = "f32") -> str:
        """Declare a part input."""
        self.values[name] = Value(name, "input", dtype, shape)
        return name

    def const(self, name: str, array: Array) -> str:
        """Declare a constant, f32 or i64."""
        dtype = "i64" if array.dtype == np.int64 else "f32"
        self.values[name] = Value(name, "const", dtype, array.shape, data=tuple(array.reshape(-1).tolist()))
        return name

    def weight(self, name: str, fmt: str, shape: tuple[int, ...], size: float = 1.0) -> str:
        """Append a random weight of about `size` to the file."""
        return self._store(name, fmt, shape, random_pieces(formats.BY_NAME[fmt], shape, size, self.rng))

    def stored(self, name: str, array: Array) -> str:
        """Append `array`, of dtype f32, f16 or bf16, as a plain weight."""
        fmt = next(f.name for f in formats.ALL if not f.block and f.codes.numpy == array.dtype)
        return self._store(name, fmt, array.shape, {"codes": np.ascontiguousarray(array)})

    def _store(self, name: str, fmt: str, shape: tuple[int, ...], stored: Mapping[str, Array]) -> str:
        row = formats.BY_NAME[fmt]
        pieces = [self._append(row, role, array, shape) for role, array in stored.items()]
        self.arrays[name] = dequantise(row, stored)
        self.values[name] = Value(name, "weight", "f32", shape, fmt, tuple(pieces))
        return name

    def experts(
        self, name: str, fmt: str, shape: tuple[int, int, int], size: float = 1.0, *, apart: bool = False,
        swapped: bool = False,
    ) -> str:  # fmt: skip
        """A stack of random weights `[E, out, in]`: pieces together, or `apart`; plain ones perhaps `swapped`."""
        count, out, width = shape
        if swapped:
            stored = self.weight(name, fmt, (count, width, out), size)
            self.arrays[name] = np.swapaxes(self.arrays[name], 1, 2)
            self.values[name] = replace(self.values[stored], shape=shape, swapped=True)
            return name
        row = formats.BY_NAME[fmt]
        parts = [random_pieces(row, (out, width), size, self.rng) for _ in range(count)]
        self.arrays[name] = np.stack([dequantise(row, part) for part in parts])
        if apart:
            pieces = [self._append(row, role, part[role], (out, width)) for part in parts for role in row.pieces]
        else:
            pieces = []
            for role in row.pieces:
                one = [self._append(row, role, part[role], (out, width)) for part in parts]
                length = sum(p.length for p in one)
                pieces.append(replace(one[0], length=length, shape=(count, *one[0].shape)))
        self.values[name] = Value(name, "weight", "f32", shape, fmt, tuple(pieces))
        return name

    def _append(self, row: Format, role: str, array: Array, shape: tuple[int, ...]) -> Piece:
        """Put one stored array at the end of the file."""
        stored = row.piece_shape(role, *shape) if row.block else shape
        piece = Piece(role, FILE, len(self._bytes), array.nbytes, row.piece_dtype(role).name, tuple(stored))
        self._bytes += array.tobytes()
        return piece

    def node(
        self,
        op: str,
        inputs: Sequence[str],
        outputs: Sequence[tuple[str, tuple[Dim, ...]]],
        attrs: Mapping[str, Attr] | None = None,
    ) -> str:
        """Append a node; returns its first output."""
        for name, shape in outputs:
            self.values[name] = Value(name, "temp", "f32", shape)
        names = tuple(name for name, _ in outputs)
        self.nodes.append(Node(op, f"{op}_{len(self.nodes)}", tuple(inputs), names, dict(attrs or {})))
        return names[0]

    def part(self, outputs: Sequence[str]) -> Part:
        """The part; writes the weights."""
        (Path(self.package) / FILE).write_bytes(bytes(self._bytes) + b"\0")
        inputs = tuple(name for name, v in self.values.items() if v.kind == "input")
        slots, sizes = self._plan()
        nodes, caches = tuple(self.nodes), tuple(self.caches)
        return Part(self.backend, self.values, nodes, inputs, tuple(outputs), caches, slots, sizes)

    def _plan(self) -> tuple[dict[str, Slot], dict[str, int]]:
        """A place of its own for each temp; 64 bytes apart, so that none shares a cache line per unit."""
        slots: dict[str, Slot] = {}
        sizes = {TOKENS: 0, ROWS: 0}
        for name, value in self.values.items():
            if value.kind == "temp":
                arena = str(value.shape[0])
                size = 4 * math.prod(d for d in value.shape[1:] if isinstance(d, int))
                slots[name] = Slot(arena, sizes[arena], size)
                sizes[arena] += -(-size // 64) * 64
        return slots, sizes

    @property
    def package(self) -> str:
        """The directory that pieces are relative to."""
        return self._directory.name


def random_pieces(fmt: Format, shape: tuple[int, ...], size: float, rng: np.random.Generator) -> dict[str, Array]:
    """Random stored arrays of one weight, whose values have a standard deviation of about `size`."""
    if not fmt.block:
        return {"codes": (rng.standard_normal(shape) * size).astype(fmt.codes.numpy)}
    make = _random_tile_piece if fmt.tile else _random_piece
    return {role: make(fmt, role, fmt.piece_shape(role, *shape), size, rng) for role in fmt.pieces}


def _random_tile_piece(fmt: Format, role: str, shape: tuple[int, ...], size: float, rng: np.random.Generator) -> Array:
    dtype = fmt.piece_dtype(role)
    if role == "codes" and dtype.bits == 4:
        return rng.integers(0, 256, (*shape[:-1], shape[-1] // 2)).astype(np.uint8)
    if role == "codes":
        return rng.standard_normal(shape).astype(dtype.numpy)
    if role == "factor":
        return np.full(shape, 0.37 if fmt.factor > 0 else 1 / 0.37, np.float32)
    step = size / (3.1 if fmt.table else 1.0) / (0.37 if fmt.factor else 1.0)  # 3.1: of the 16 values of e2m1
    spread = rng.uniform(0.5, 1.5, shape) * step
    return (np.exp2(np.round(np.log2(spread))) if dtype is dtypes.F8E8M0 else spread).astype(dtype.numpy)


# Largest code magnitude that GGUF's quantisers produce in each format: the widened ones do not use all 8 bits.
_CODES = {"q4_0": (-8, 7), "q4_1": (0, 15), "q5_0": (-16, 15), "q5_1": (0, 31), "q8_0": (-127, 127)}
_CODES |= {"q4_k": (0, 15), "q5_k": (0, 31), "q6_k": (-32, 31)}


def _random_piece(fmt: Format, role: str, shape: tuple[int, ...], size: float, rng: np.random.Generator) -> Array:
    low, high = _CODES[fmt.name]
    step = size / math.sqrt(((high - low + 1) ** 2 - 1) / 12)  # of a uniform code of unit scale
    middle = (low + high) / 2 if fmt.has_min else 0.0
    if role == "codes":
        codes = rng.integers(low, high + 1, shape)
        if fmt.codes.bits == 8:
            return codes.astype(fmt.codes.numpy)
        nibbles = (codes & 0xF).astype(np.uint8)
        return nibbles[..., 0::2] | nibbles[..., 1::2] << 4
    dtype = fmt.piece_dtype(role)
    spread = rng.uniform(0.5, 1.5, shape)
    if dtype is not dtypes.F16:  # 6-bit scales and mins of a K format; 8-bit signed ones in q6_k
        return rng.integers(-100 if dtype is dtypes.I8 else 1, 64, shape).astype(dtype.numpy)
    per_code = 32 if fmt.super_block else 1
    factor = step / per_code * (1 if role.endswith("scale") else -middle * fmt.min_sign)
    return (spread * factor).astype(np.float16)
