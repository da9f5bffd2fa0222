"""What the front passes share: reading an onnx_ir graph, and replacing a group of its nodes by one `datong` node.

Facts about a value are kept in its `meta`, not in the graph:

    bound   spec.program.Value: this value is a weight, as f32, whatever its stored format
    stored  spec.program.Value: a plain f16 or bf16 weight before its Cast
    dims    tuple of int and `batch`, `seq`, `past`: the shape, from passes/infer_shapes.py

and `why` in a node's `meta` is the reason why a rule that was meant for this node did not take it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from datong.spec import program

DOMAIN = "datong"
BATCH, SEQ, PAST = "batch", "seq", "past"
INLINE_LIMIT = 1 << 16  # elements; larger inline constants would bloat the plan, weights belong into files

Dims = tuple[int | str, ...]


def is_op(node: ir.Node | None, *ops: str) -> bool:
    """Is this a stock ONNX node of one of these operators?"""
    return node is not None and node.domain in ("", "ai.onnx") and node.op_type in ops


def producer(value: ir.Value | None, *ops: str) -> ir.Node | None:
    """The stock node of one of these operators that makes `value`, or None."""
    if value is None:
        return None
    node = value.producer()
    return node if is_op(node, *ops) else None


def nodes(graph: ir.Graph, *ops: str) -> Iterator[ir.Node]:
    """The stock nodes of these operators in order; the graph may be changed meanwhile."""
    return (node for node in graph if is_op(node, *ops))


def operand(node: ir.Node, index: int) -> ir.Value | None:
    """Input number `index`, None where it is absent."""
    return node.inputs[index] if index < len(node.inputs) else None


def bound(value: ir.Value | None) -> program.Value | None:
    """The weight that this value is, or None."""
    found = None if value is None else value.meta.get("bound")
    return found if isinstance(found, program.Value) else None


def stored(value: ir.Value | None) -> program.Value | None:
    """The plain weight that this value is, before any Cast, or None."""
    found = None if value is None else value.meta.get("stored")
    return found if isinstance(found, program.Value) else None


def dims(value: ir.Value | None) -> Dims | None:
    """The shape found by infer_shapes, or None."""
    return None if value is None else value.meta.get("dims")


def token_width(value: ir.Value | None) -> int | None:
    """N when the value is `[batch, seq, n]`, else None."""
    shape = dims(value)
    if shape is None or len(shape) != 3 or shape[:2] != (BATCH, SEQ) or not isinstance(shape[2], int):
        return None
    return shape[2]


def constant(value: ir.Value | None) -> np.ndarray | None:
    """The array of a small inline constant (initializer or Constant node); weights in files are never read."""
    if value is None:
        return None
    tensor = value.const_value
    node = value.producer()
    if tensor is None and is_op(node, "Constant") and node is not None:
        tensor = _constant_tensor(node)
    if tensor is None or isinstance(tensor, ir.ExternalTensor) or math.prod(_sizes(tensor)) > INLINE_LIMIT:
        return None
    return np.asarray(tensor.numpy())


def _constant_tensor(node: ir.Node) -> ir.TensorProtocol | None:
    for name in ("value_float", "value_floats", "value_int", "value_ints"):
        if name in node.attributes:
            kind = np.float32 if "float" in name else np.int64
            return ir.tensor(np.asarray(node.attributes[name].value, dtype=kind))
    found = node.attributes.get("value")
    return None if found is None else found.as_tensor()


def _sizes(tensor: ir.TensorProtocol) -> tuple[int, ...]:
    return tuple(d if isinstance(d, int) else 0 for d in tensor.shape)


def scalar(value: ir.Value | None) -> float | None:
    """The number in a one-element inline constant, or None."""
    array = constant(value)
    return None if array is None or array.size != 1 else float(array.reshape(()))


def ints(value: ir.Value | None) -> list[int] | None:
    """The integers of an inline constant, or None."""
    array = constant(value)
    return None if array is None or array.dtype.kind not in "iu" else [int(x) for x in array.reshape(-1)]


def int_attr(node: ir.Node, name: str, default: int) -> int:
    """An integer attribute."""
    found = node.attributes.get(name)
    return default if found is None else found.as_int()


def float_attr(node: ir.Node, name: str, default: float) -> float:
    """A float attribute."""
    found = node.attributes.get(name)
    return default if found is None else found.as_float()


def users(value: ir.Value) -> list[ir.Node]:
    """Nodes that read this value, one entry per use."""
    return [use.node for use in value.uses()]


def used_once(value: ir.Value) -> bool:
    """Exactly one reader, and not a graph output: the value may disappear into a larger operator."""
    return not value.is_graph_output() and len(value.uses()) == 1


def label(node: ir.Node) -> str:
    """The node's name; onnx_ir gives one to nodes that came without."""
    return node.name or node.op_type


def note(node: ir.Node, why: str) -> None:
    """Remember why a rule did not take this node; the first reason stays."""
    node.meta.setdefault("why", why)


def leaf(value: program.Value, shape: Dims) -> ir.Value:
    """A new graph value without producer that stands for a bound weight."""
    new = ir.Value(name=value.name)
    new.meta["bound"] = value
    new.meta["dims"] = shape
    return new


def erase(node: ir.Node) -> None:
    """Remove a node whose outputs nobody reads, and then its producers that nobody reads any more."""
    stack = [node]
    while stack:
        last = stack.pop()
        if last.graph is None or any(out.uses() or out.is_graph_output() for out in last.outputs):
            continue
        sources = [value.producer() for value in last.inputs if value is not None]
        last.graph.remove(last, safe=True)
        stack.extend(source for source in sources if source is not None)


def replace(
    root: ir.Node,
    op: str,
    inputs: Sequence[ir.Value | None],
    attrs: Mapping[str, int | float | str],
    outputs: Sequence[ir.Value],
    sources: Sequence[ir.Node] = (),
) -> ir.Node:
    """Put one `datong` node before `root` and let it make `outputs`; nodes that become useless are removed.

    inputs:  must be available before `root`.
    outputs: values that the new node makes from now on; they keep name and dims.
    sources: further nodes that it stands for, whose names it carries.
    """
    graph = root.graph
    if graph is None:
        raise ValueError(f"node `{root.name}` is in no graph")
    names = list(dict.fromkeys(label(node) for node in (*sources, root)))
    attributes = [
        ir.AttrInt64(k, v)
        if isinstance(v, int)
        else ir.AttrFloat32(k, v)
        if isinstance(v, float)
        else ir.AttrString(k, v)
        for k, v in attrs.items()
    ]
    new = ir.Node(DOMAIN, op, inputs, attributes, num_outputs=len(outputs), name="+".join(names))
    graph.insert_before(root, new)
    for old, out in zip(outputs, new.outputs, strict=True):
        maker = old.producer()
        name, old.name = old.name, f"{old.name}#old"
        out.name = name
        out.meta["dims"] = old.meta.get("dims")
        old.replace_all_uses_with(out, replace_graph_outputs=True)
        if maker is not None:
            erase(maker)
    erase(root)
    return new
