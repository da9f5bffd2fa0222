"""Initializers become weights: where their bytes lie, not the bytes.

Requires: any graph; initializers with external data relative to the package.
Rules:
  1. a plain initializer in a file (f32, f16, bf16) is `stored`; an f32 one is also `bound`;
  2. Cast to f32 of a stored weight is the same weight, `bound`: backends convert as they read;
  3. Add of a stored or bound vector and the scalar 1 is left alone: norms read it (recognise_rms_norm);
  4. an integer initializer in a file is left to bind_block_weights;
  5. an inline initializer stays an inline constant.
Ensures: no byte of a file was read; no Cast of a plain weight is left.
"""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from datong import dtypes
from datong.compiler import files, match
from datong.errors import CompileError, IntegrityError
from datong.spec.program import Piece, Value

PLAIN = ("f32", "f16", "bf16")


def piece(value: ir.Value, role: str) -> Piece | None:
    """The place of an initializer that lies in a file, or None for anything else. Raises IntegrityError."""
    tensor = value.const_value
    if not isinstance(tensor, ir.ExternalTensor) or value.producer() is not None:
        return None
    kind = dtypes.BY_ONNX.get(int(tensor.dtype))
    if kind is None:
        raise CompileError("compile", f"weight `{value.name}` has type {tensor.dtype}, which no format uses")
    shape = tuple(d if isinstance(d, int) else -1 for d in tensor.shape)
    if min(shape, default=1) < 1:
        raise IntegrityError("compile", f"weight `{value.name}` should have positive dims, it has {list(shape)}")
    length = tensor.length if tensor.length is not None else tensor.nbytes
    return Piece(role, str(tensor.location), tensor.offset or 0, length, kind.name, shape)


def run(graph: ir.Graph, root: Path) -> int:
    """Bind in place; returns the number of weights. Raises IntegrityError, ContainmentError for bad places."""
    pieces: list[Piece] = []
    for value in graph.initializers.values():
        found = piece(value, "codes")
        if found is None:
            continue
        pieces.append(found)
        if found.dtype in PLAIN:
            weight = Value(value.name or "", "weight", "f32", found.shape, found.dtype, (found,))
            value.meta["stored"] = weight
            value.meta["dims"] = found.shape
            if found.dtype == "f32":
                value.meta["bound"] = weight
    files.check_pieces(root, pieces)
    for cast in match.nodes(graph, "Cast"):
        stored = match.stored(cast.inputs[0])
        if stored is not None and match.int_attr(cast, "to", 0) == ir.DataType.FLOAT:
            cast.outputs[0].replace_all_uses_with(match.leaf(stored, stored.shape))
            match.erase(cast)
    return len(pieces)
