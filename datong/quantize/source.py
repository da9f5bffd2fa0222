"""The weights of a package as numbers: what each is to the graph, and its rows in f32, read as they are asked for."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from datong.compiler.draft import Draft
from datong.errors import CheckpointError, PackageError
from datong.package.reader import Package
from datong.spec import formats
from datong.spec.formats import Format
from datong.spec.program import Node, Value, expert
from datong.spec.reference import dequantise

F32 = npt.NDArray[np.float32]

LARGEST = 65504.0 * 7  # the largest f16, times the largest code of q4_0

# What a weight is to the graph. Of several uses (a tied embedding is two) the first of this order counts.
OTHER, GATE, VOCABULARY, LINEAR, EXPERTS = "other", "gate", "vocabulary", "linear", "experts"
ORDER = (OTHER, GATE, VOCABULARY, LINEAR, EXPERTS)
# A linear layer is a gate when all that it gives goes, perhaps through one of _THROUGH, into one of these: routers,
# gates per head or token, decay and write strength of a recurrent state, weights of the heads that choose keys. Small,
# and much depends on them.
_GATES = {("moe", 1), ("scale_groups", 1), ("gated_delta", 3), ("gated_delta", 4), ("select_keys", 2)}
_THROUGH = ("sigmoid", "slice")
_EXPERT_INPUTS = (2, 3, 4)  # of `moe`: gate, up, down
# Operators that multiply rows with a matrix [out, in]: which input has the rows, and which is the matrix.
PRODUCTS = {"linear": (0, 1), "latent_attention": (1, 3)}


@dataclass(frozen=True)
class Matrix:
    """One weight of the package, under the name by which the family's builder takes it."""

    name: str
    value: str  # of the draft: what the nodes read
    role: str
    shape: tuple[int, ...]  # logical, as the checkpoint has it
    format: Format
    swapped: bool
    pieces: dict[str, npt.NDArray[Any]]  # by role, views of the mapped files, in the stored shape

    @property
    def rows(self) -> int:
        """Of all experts together, where there are several."""
        return math.prod(self.shape[:-1])

    @property
    def width(self) -> int:
        """Values of a row."""
        return self.shape[-1]

    def read(self, start: int, stop: int) -> F32:
        """Rows, dequantised: [stop - start, width]. Raises CheckpointError for a value that no block can hold."""
        rows = {
            role: piece.reshape(self.rows, *piece.shape[len(self.shape) - 1 :]) for role, piece in self.pieces.items()
        }
        values = dequantise(self.format, {role: piece[start:stop] for role, piece in rows.items()})
        if not (np.abs(values) <= LARGEST).all():
            raise CheckpointError(
                "quantize",
                f"weight `{self.name}` should hold numbers up to {LARGEST:.0f}, rows {start} to {stop - 1} do not",
                "`datong verify --deep` lists such weights; download the checkpoint again",
            )
        return np.ascontiguousarray(values, np.float32)


def matrices(package: Package, drafts: Iterable[Draft]) -> list[Matrix]:
    """Every weight that the graphs of the package use, in the order of their first use; shared ones once.

    Raises PackageError when a weight is no tensor of its own.
    """
    places = {(file, entry.offset): name for name, (file, entry) in package.tensors.items()}
    found: dict[str, Matrix] = {}
    for draft in drafts:
        for name, role in _roles(draft).items():
            for one in _members(draft.values[name]):
                matrix = _matrix(package, places, one, name, role)
                found.setdefault(matrix.name, matrix)
    return list(found.values())


def _matrix(package: Package, places: Mapping[tuple[str, int], str], one: Value, value: str, role: str) -> Matrix:
    """`places`: file and offset -> tensor; `value`: what the nodes read: the weight, or the stack that it is in."""
    first = one.pieces[0]
    tensor = places.get((first.file, first.offset))
    if tensor is None:
        raise PackageError("quantize", f"weight `{one.name}` should be a tensor of its own, it is part of one")
    pieces = {p.role: package.tensor(places[p.file, p.offset]) for p in one.pieces}
    shape = tuple(int(d) for d in one.shape)
    shape = (*shape[:-2], shape[-1], shape[-2]) if one.swapped else shape
    if not formats.BY_NAME[one.format].block:  # the graph may have reshaped it: a convolution is stored [C, 1, K]
        shape = tuple(pieces["codes"].shape)
    return Matrix(tensor, value, role, shape, formats.BY_NAME[one.format], one.swapped, pieces)


def _members(value: Value) -> Iterator[Value]:
    """The weight, or its experts where each is a tensor of its own."""
    apart = len(value.pieces) > len({piece.role for piece in value.pieces})
    if not apart:
        yield value
        return
    yield from (expert(value, index) for index in range(int(value.shape[0])))


def _roles(draft: Draft) -> dict[str, str]:
    """Weight value -> its role, in the order of use."""
    gates = _gates(draft)
    found: dict[str, str] = {}
    for node in draft.nodes:
        for place, name in enumerate(node.inputs):
            if name and draft.values[name].kind == "weight":
                role = _role(node, place, gates, draft.output)
                found[name] = min(found.get(name, role), role, key=ORDER.index)
    return found


def _gates(draft: Draft) -> set[str]:
    """Values that only gates read."""
    found: set[str] = set()
    readers = draft.readers()
    for node in reversed(draft.nodes):
        for name in node.outputs:
            uses = [(user, place) for user in readers.get(name, ()) for place, x in enumerate(user.inputs) if x == name]
            if uses and all(
                (user.op, place) in _GATES or (user.op in _THROUGH and user.outputs[0] in found) for user, place in uses
            ):
                found.add(name)
    return found


def _role(node: Node, place: int, gates: set[str], output: str) -> str:
    if node.op == "embedding":
        return VOCABULARY
    if node.op == "moe" and place in _EXPERT_INPUTS:
        return EXPERTS
    if place != PRODUCTS.get(node.op, (0, -1))[1]:
        return OTHER
    if node.outputs[0] == output:
        return VOCABULARY
    return GATE if node.outputs[0] in gates else LINEAR
