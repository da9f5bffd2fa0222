"""Replace calls of model-local functions by their bodies, but for those that are operators of ours.

Requires: any graph.
Rules:
  1. a call of a function of domain `datong` whose body is the one that importer/functions.py writes for the call's
     attributes is left: recognise_functions turns it into the operator;
  2. a call of any other function that the model carries becomes the function's nodes (stock ONNX, design.md §3).
Ensures: every call left is an operator of ours.
"""

from __future__ import annotations

import onnx_ir as ir

from datong.errors import CompileError
from datong.importer.functions import is_ours


def run(model: ir.Model) -> int:
    """Inline in place; returns the number of functions. Raises CompileError for a ring of calls."""
    count = len(model.functions)
    if count:
        from onnx_ir.passes.common import InlinePass

        kept = _kept(model)
        try:
            InlinePass(criteria=lambda function: function.identifier() not in kept)(model)
        except Exception as error:  # the pass raises its own types; all of them mean a bad model
            raise CompileError("compile", f"functions of the graph cannot be inlined: {error}") from error
    return count


def _kept(model: ir.Model) -> set[ir.OperatorIdentifier]:
    """Functions all of whose calls may become an operator."""
    fine: dict[ir.OperatorIdentifier, bool] = {}
    seen: set[tuple[object, ...]] = set()
    for node in model.graph:
        key = node.op_identifier()
        function = model.functions.get(key)
        if function is None:
            continue
        facts = (key, *sorted((name, str(attr.value)) for name, attr in node.attributes.items()),
                 *(value is None for value in node.inputs))  # fmt: skip
        if facts in seen:  # the same call, in another layer
            continue
        seen.add(facts)
        fine[key] = fine.get(key, True) and is_ours(function, node)
    return {key for key, yes in fine.items() if yes}
