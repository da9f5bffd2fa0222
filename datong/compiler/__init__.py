"""Package -> program: `pipeline` is the compiler on a page, `cache` the warm path that needs no ONNX.

    graph.onnx ──front passes──▶ datong operators ──lower──▶ draft ──back passes──▶ partition ──▶ memory ──▶ Program
    [batch, seq], stock ONNX     still onnx_ir               spec nodes, [T, n]     per backend   slots      plan.json

Front passes rewrite the ONNX graph until every node is a row of spec/ops.py; back passes work on plain spec nodes. A
node that no rule recognises stays where it is, and is refused with its name and the reason: the compiler never guesses.
"""
