"""`graph.onnx` as bytes and protobuf: made deterministic, read with every bound checked, and asked what it uses.

This file alone of package/ knows ONNX. It is imported lazily: opening a package must not cost the import of onnx.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

from datong import dtypes
from datong.errors import DatongError, IntegrityError, PackageError, VerifyError
from datong.importer.safetensors import Entry, Header
from datong.package.manifest import AttrValue, OperatorSet, OperatorUse
from datong.package.paths import check_relative
from datong.spec.ops import OPSET_VERSION

if TYPE_CHECKING:
    import onnx_ir as ir

MAX_BYTES = (1 << 31) - 1  # protobuf's own limit
MAX_IR, MAX_OPSET = 14, 28  # what the pinned onnx can check (facts of onnx 1.23)
STALE = "the weight file was replaced or edited since: import the model again"
MAX_NESTING = 16  # graphs inside attributes of nodes; our Scan has one level, Scan and If of others one or two


@dataclass(frozen=True)
class External:
    """One initializer whose bytes lie in a file of the package."""

    name: str
    file: str
    offset: int  # bytes from the start of the file
    length: int  # bytes
    dtype: dtypes.DType
    shape: tuple[int, ...]


def to_bytes(model: ir.Model) -> bytes:
    """The bytes of `graph.onnx`; the same graph gives the same bytes. Reads no weights."""
    import onnx_ir

    proto = onnx_ir.to_proto(model)
    data: bytes = proto.SerializeToString(deterministic=True)
    if len(data) > MAX_BYTES:
        raise PackageError("write", f"a graph has at most {MAX_BYTES} bytes, this one has {len(data)}")
    return data


def parse(data: bytes, where: str) -> ModelProto:
    """The protobuf of `graph.onnx`. Raises PackageError when it is none, or of a version that we cannot check."""
    proto = ModelProto()
    try:
        proto.ParseFromString(data)
    except (DecodeError, RecursionError) as e:
        raise PackageError(where, f"the graph should be an ONNX model, it cannot be parsed: {e}") from None
    opset = max((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), default=0)
    if not 3 <= proto.ir_version <= MAX_IR or not 1 <= opset <= MAX_OPSET:
        raise PackageError(
            where,
            f"the graph should have IR version 3 to {MAX_IR} and opset 1 to {MAX_OPSET}, "
            f"it has {proto.ir_version} and {opset}",
        )
    _check_edges(proto, where)
    return proto


def _check_edges(proto: ModelProto, where: str) -> None:
    """Names are text, and each value of the main graph is defined once, before its use. Raises PackageError.

    onnx_ir would make up an input for a value that nobody defines, and go on.
    """
    graph = proto.graph
    given = [v.name for v in (*graph.input, *graph.initializer)]
    named = [*given, *(v.name for v in graph.output), *(f.domain for f in proto.functions)]
    named += [f.name for f in proto.functions]
    named += [entry.key for t in graph.initializer for entry in t.external_data]
    named += [entry.value for t in graph.initializer for entry in t.external_data]
    for node in graph.node:
        named += [node.name, node.op_type, node.domain, *node.input, *node.output, *(a.name for a in node.attribute)]
    # protobuf hands out a string that is not UTF-8 as bytes
    odd = next((n for n in named if not isinstance(n, str)), None)
    if odd is not None:
        raise PackageError(where, f"names in the graph should be UTF-8 text, {ascii(odd)[:80]} is not")
    defined = set(given)
    for node in graph.node:
        missing = next((n for n in node.input if n and n not in defined), None)
        if missing is not None:
            raise PackageError(where, f"node `{node.name}` reads `{missing}`, which nothing before it defines")
        made = [n for n in node.output if n]
        twice = next((n for i, n in enumerate(made) if n in defined or n in made[:i]), None)
        if twice is not None:
            raise PackageError(where, f"node `{node.name}` defines `{twice}`, which is defined already")
        defined.update(made)
    absent = next((v.name for v in graph.output if v.name not in defined), None)
    if absent is not None:
        raise PackageError(where, f"the graph should give `{absent}`, which no node defines")


def externals(proto: ModelProto, where: str) -> list[External]:
    """Every initializer that lies in a file. Raises PackageError for external data anywhere else in the model."""
    for tensor in _other_tensors(proto):
        if tensor.data_location == TensorProto.EXTERNAL:
            raise PackageError(
                where, f"only initializers of the main graph may lie in files, `{tensor.name[:80]}` is not one"
            )
    return [_external(t, where) for t in proto.graph.initializer if t.data_location == TensorProto.EXTERNAL]


def _external(tensor: TensorProto, where: str) -> External:
    """Read the place of one initializer. Raises ContainmentError or PackageError."""
    name = tensor.name[:200]
    keys = {entry.key: entry.value for entry in tensor.external_data}
    dtype = dtypes.BY_ONNX.get(tensor.data_type)
    if dtype is None:
        raise PackageError(where, f"initializer `{name}` has element type {tensor.data_type}, which no package stores")
    check_relative(keys.get("location", ""), f"{where}: initializer `{name}`")
    numbers = {}
    for key in ("offset", "length"):
        text = keys.get(key, "")
        if not (text.isascii() and text.isdigit() and len(text) <= 18):
            raise PackageError(where, f"`{key}` of initializer `{name}` should be a whole number, it is `{text[:40]}`")
        numbers[key] = int(text)
    shape = tuple(tensor.dims)
    if any(d < 0 for d in shape) or dtype.nbytes(math.prod(shape)) != numbers["length"]:
        raise IntegrityError(
            where,
            f"initializer `{name}`, {dtype.name} {list(shape)}, should take {dtype.nbytes(math.prod(shape))} bytes, "
            f"the graph gives it {numbers['length']}",
        )
    return External(name, keys["location"], numbers["offset"], numbers["length"], dtype, shape)


def _other_tensors(proto: ModelProto) -> Iterator[TensorProto]:
    """Every tensor of the model but the dense initializers of the main graph."""
    yield from _tensors(proto.graph, 0, main=True)
    for function in proto.functions:
        for node in function.node:
            yield from _node_tensors(node, 0)
    for info in proto.training_info:
        yield from _tensors(info.initialization, 0)
        yield from _tensors(info.algorithm, 0)


def _tensors(graph: GraphProto, depth: int, main: bool = False) -> Iterator[TensorProto]:
    if depth > MAX_NESTING:
        raise PackageError("graph", f"graphs are nested at most {MAX_NESTING} deep, this one is nested deeper")
    if not main:
        yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        yield from _node_tensors(node, depth)


def _node_tensors(node: NodeProto, depth: int) -> Iterator[TensorProto]:
    for a in node.attribute:
        yield a.t
        yield from a.tensors
        for sparse in (a.sparse_tensor, *a.sparse_tensors):
            yield from (sparse.values, sparse.indices)
        for inner in (*([a.g] if a.HasField("g") else []), *a.graphs):
            yield from _tensors(inner, depth + 1)


def check_externals(found: Iterable[External], headers: Mapping[str, Header], where: str) -> None:
    """Every external initializer is a tensor of a listed safetensors file, or a range of its rows.

    Raises IntegrityError naming the initializer and what the file holds instead.
    """
    rows = {file: sorted(header.tensors.items(), key=lambda t: t[1].offset) for file, header in headers.items()}
    starts = {file: [t.offset for _, t in tensors] for file, tensors in rows.items()}
    for want in found:
        if want.file not in rows:
            raise IntegrityError(
                where, f"initializer `{want.name}` lies in `{want.file}`, which is no weight file of the package"
            )
        # The last tensor that starts at or before the offset is the only one that can hold the initializer.
        index = bisect.bisect_right(starts[want.file], want.offset) - 1
        name, have = rows[want.file][index] if index >= 0 else ("", None)
        if have is None or want.offset + want.length > have.offset + have.length:
            raise IntegrityError(
                where,
                f"initializer `{want.name}` should be bytes {want.offset} to {want.offset + want.length} of "
                f"`{want.file}`, no tensor of that file holds them",
                STALE,
            )
        _check_match(want, name, have, where)


def _check_match(want: External, name: str, have: Entry, where: str) -> None:
    """Element type and shape of an initializer against the stored tensor that holds it."""
    stored = want.shape
    if want.dtype.bits < 8:  # two to a byte along the last dim
        stored = (*want.shape[:-1], (want.shape[-1] * want.dtype.bits + 7) // 8) if want.shape else ()
    row = have.length // have.shape[0] if have.shape and have.shape[0] else have.length
    loose = want.dtype.bits < 8 or len(have.shape) < 2  # packed as its method likes; one scale for all
    e8m0 = want.dtype is dtypes.F8E8M0 and have.dtype == "U8"  # as which it is often stored
    words = want.dtype.bits == 4 and have.dtype == "I32"  # eight to a word, low bits first
    if words:
        stored = (*have.shape,) if want.length == have.length else ()
    good = (want.dtype.safetensors == have.dtype or e8m0 or words) and (
        stored == have.shape or (loose and math.prod(stored) == math.prod(have.shape))
        if want.length == have.length
        else stored[1:] == have.shape[1:] and row > 0 and (want.offset - have.offset) % row == 0
    )
    if not good:
        raise IntegrityError(
            where,
            f"initializer `{want.name}`, {want.dtype.name} {list(want.shape)}, does not match tensor `{name}` of "
            f"`{want.file}`, {have.dtype} {list(have.shape)}",
            STALE,
        )


def requirements(proto: ModelProto) -> OperatorSet:
    """Which operators the graph uses, how often, on which element types and with which attribute values."""
    inferred = onnx.shape_inference.infer_shapes(without_files(proto))
    graph = inferred.graph
    types = {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.output, *graph.value_info)}
    types.update({t.name: t.data_type for t in graph.initializer})
    uses: dict[tuple[str, str], _Use] = {}
    for node in proto.graph.node:
        domain = "" if node.domain == "ai.onnx" else node.domain
        uses.setdefault((domain, node.op_type), _Use()).add(node, types)
    opset = max(o.version for o in proto.opset_import if o.domain in ("", "ai.onnx"))
    functions = sorted(f"{f.domain}:{f.name}" for f in proto.functions)
    operators = [use.entry(domain, op) for (domain, op), use in sorted(uses.items())]
    return OperatorSet(OPSET_VERSION, opset, proto.ir_version, operators, functions)


class _Use:
    """Gathers the uses of one operator."""

    def __init__(self) -> None:
        self.count = 0
        self.inputs: list[set[str]] = []
        self.outputs: list[set[str]] = []
        self.attributes: dict[str, dict[str, AttrValue]] = {}

    def add(self, node: NodeProto, types: Mapping[str, int]) -> None:
        """Count one node; `types` maps value names to ONNX element types."""
        self.count += 1
        for seen, names in ((self.inputs, node.input), (self.outputs, node.output)):
            seen.extend(set() for _ in range(len(names) - len(seen)))
            for slot, name in zip(seen, names, strict=False):
                if name:
                    slot.add(_type_name(types.get(name, 0)))
        for a in node.attribute:
            value = _attribute(a)
            self.attributes.setdefault(a.name, {})[repr(value)] = value

    def entry(self, domain: str, op: str) -> OperatorUse:
        """The row of the manifest."""
        values = {name: sorted(seen.values(), key=_order) for name, seen in sorted(self.attributes.items())}
        inputs, outputs = (["|".join(sorted(slot)) for slot in slots] for slots in (self.inputs, self.outputs))
        return OperatorUse(domain, op, self.count, inputs, outputs, values)


def _type_name(onnx_type: int) -> str:
    known = dtypes.BY_ONNX.get(onnx_type)
    if known is not None:
        return known.name
    return TensorProto.DataType.Name(onnx_type).lower() if onnx_type in TensorProto.DataType.values() else "unknown"


def _order(value: AttrValue) -> tuple[int, float, str]:
    """Numbers by size, then everything else by its text."""
    return (0, float(value), "") if isinstance(value, int | float) else (1, 0.0, repr(value))


def _attribute(a: AttributeProto) -> AttrValue:
    """The value of an attribute as JSON can hold it; a tensor or graph only by what it is."""
    kind = AttributeProto.AttributeType
    if a.type == kind.INT:
        return int(a.i)
    if a.type == kind.FLOAT:
        return _float(a.f)
    if a.type == kind.STRING:
        return a.s.decode("utf-8", "replace")
    if a.type == kind.INTS:
        return [int(i) for i in a.ints]
    if a.type == kind.FLOATS:
        return [_float(f) for f in a.floats]
    if a.type == kind.STRINGS:
        return [s.decode("utf-8", "replace") for s in a.strings]
    if a.type == kind.TENSOR:
        return f"{_type_name(a.t.data_type)}{list(a.t.dims)}"
    return str(kind.Name(a.type)).lower()


def _float(value: float) -> float | str:
    """The shortest decimal that is this f32: 1e-05, not 9.999999747378752e-06. JSON has no nan and no infinity."""
    return float(str(np.float32(value))) if math.isfinite(value) else str(value)


def without_files(proto: ModelProto) -> ModelProto:
    """A copy whose external initializers are graph inputs: it can be checked without the files, at any place."""
    copy = ModelProto()
    copy.CopyFrom(proto)
    kept = [t for t in copy.graph.initializer if t.data_location != TensorProto.EXTERNAL]
    names = {v.name for v in copy.graph.input}
    for tensor in copy.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL and tensor.name not in names:
            copy.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    del copy.graph.initializer[:]
    copy.graph.initializer.extend(kept)
    return copy


def full_check(proto: ModelProto, where: str) -> None:
    """The full check of onnx.checker: schemas, types, shapes, order of nodes. Raises VerifyError with its words."""
    try:
        onnx.checker.check_model(without_files(proto), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError) as e:
        raise VerifyError(where, f"onnx.checker refuses the graph: {' '.join(str(e).split())[:500]}") from None


def to_model(proto: ModelProto, weights_root: Path, where: str) -> ir.Model:
    """The graph as onnx_ir holds it; external tensors know where their files lie."""
    import onnx_ir

    try:
        model = onnx_ir.from_proto(proto)
        onnx_ir.external_data.set_base_dir(model.graph, weights_root)
    except DatongError:
        raise
    except Exception as e:  # whatever a foreign graph makes of onnx_ir: its errors have no common base
        raise PackageError(where, f"the graph cannot be read: {type(e).__name__}: {str(e)[:300]}") from e
    return model
