"""Check that stock nodes are well formed, so that no later pass need ask whether an input or attribute is there.

Requires: any graph.
Rules:
  1. a stock node has as many inputs and outputs as its operator's schema asks for, required inputs are not empty, and
     its attributes are of the schema's types;
  2. a node with a graph inside (If, Loop, Scan) is refused: control flow has no form in the operator set;
  3. an operator that ONNX does not know is left for flatten_tokens to refuse.
Ensures: `node.inputs[i]` exists for every required input; attribute getters find the type that they expect.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import onnx
import onnx_ir as ir

from datong.compiler import match
from datong.errors import CompileError, Unsupported

WHERE = "compile"
GRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
HINT = "onnx.checker says more about what is valid"
OPSET = 28  # newest that the pinned onnx knows; a node newer than its model's opset is refused by package/graph.py


def run(graph: ir.Graph, root: Path) -> int:
    """Check only. Raises CompileError for a malformed node, Unsupported for control flow."""
    opset = min(graph.opset_imports.get("", OPSET), OPSET)
    nested: list[tuple[str, str]] = []
    for node in graph:
        if any(attr.type in GRAPHS for attr in node.attributes.values()):
            nested.append(
                (match.label(node), f"`{node.op_type}` is control flow, which the operator set does not have")
            )
        elif match.is_op(node, node.op_type):
            wrong = _wrong(node, opset)
            if wrong:
                raise CompileError(WHERE, f"node `{match.label(node)}` ({node.op_type}) {wrong}", HINT)
    if nested:
        raise Unsupported(WHERE, f"node `{nested[0][0]}`: {nested[0][1]}", reasons=nested)
    return 0


@cache
def _schema(op: str, opset: int) -> onnx.defs.OpSchema | None:
    try:
        return onnx.defs.get_schema(op, opset)
    except onnx.defs.SchemaError:
        return None


def _wrong(node: ir.Node, opset: int) -> str:
    """What is wrong with a node, empty when nothing is."""
    schema = _schema(node.op_type, opset)
    if schema is None:
        return ""
    given = len(node.inputs)
    while given and node.inputs[given - 1] is None:
        given -= 1
    if not schema.min_input <= given <= schema.max_input:
        return f"should have {schema.min_input} to {schema.max_input} inputs, it has {given}"
    if any(value is None for value in node.inputs[: schema.min_input]):
        return "should have its required inputs, one is empty"
    if not schema.min_output <= len(node.outputs) <= schema.max_output:
        return f"should have {schema.min_output} to {schema.max_output} outputs, it has {len(node.outputs)}"
    for name, attr in node.attributes.items():
        known = schema.attributes.get(name)
        if known is None or attr.is_ref() or attr.type.name != str(known.type).rpartition(".")[2]:
            return f"should have no attribute `{name}` of type {attr.type.name}"
    missing = [name for name, known in schema.attributes.items() if known.required and name not in node.attributes]
    return f"should have the attribute `{missing[0]}`" if missing else ""
