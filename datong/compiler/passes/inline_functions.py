"""Replace calls of model-local functions by their bodies.

Requires: any graph.
Rules: 1. a call of a function that the model carries becomes the function's nodes (stock ONNX, design.md §3).
Ensures: no node calls a model-local function.

Operators of domain `datong` that a backend knows by name will stop being inlined here when the operator set has them.
"""

from __future__ import annotations

import onnx_ir as ir

from datong.errors import CompileError


def run(model: ir.Model) -> int:
    """Inline in place; returns the number of functions. Raises CompileError for a ring of calls."""
    count = len(model.functions)
    if count:
        from onnx_ir.passes.common import InlinePass

        try:
            InlinePass()(model)
        except Exception as error:  # the pass raises its own types; all of them mean a bad model
            raise CompileError("compile", f"functions of the graph cannot be inlined: {error}") from error
    return count
