"""MatMul with a transposed weight, and the Add of a bias after it, are one `linear`.

Requires: bind_weights, bind_block_weights, infer_shapes.
Rules:
  1. MatMul(x, Transpose(W, perm [1, 0])), x `[batch, seq, in]`, W a bound weight `[out, in]`  ->  linear(x, W);
  2. Add(that, b) in any operand order, b a plain bound weight or inline constant `[out]`, and no other reader of the
     product  ->  linear(x, W, b).
Ensures: every MatMul left has a note that says why it is not a linear.
"""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from datong.compiler import match

NO_WEIGHT = "its second operand should be a transposed weight; this one is computed in the graph"


def run(graph: ir.Graph, root: Path) -> int:
    """Rewrite in place; returns the number of linears."""
    count = 0
    for node in match.nodes(graph, "MatMul"):
        x, second = node.inputs[0], node.inputs[1]
        transpose = match.producer(second, "Transpose")
        weight = None if transpose is None else transpose.inputs[0]
        why = _why_not(x, second, transpose, weight)
        if why or weight is None:
            match.note(node, why)
            continue
        add = _bias_add(node)
        if add is None:
            match.replace(node, "linear", [x, weight], {}, [node.outputs[0]])
        else:
            last, bias = add
            match.replace(last, "linear", [x, weight, bias], {}, [last.outputs[0]], [node])
        count += 1
    return count


def _why_not(x: ir.Value | None, second: ir.Value | None, transpose: ir.Node | None, weight: ir.Value | None) -> str:
    if transpose is None and match.bound(second) is not None:
        return "its weight is stored [in, out]; a linear needs [out, in] and a Transpose before the MatMul"
    bound = match.bound(weight)
    if transpose is None or bound is None:
        stored = weight is not None and weight.is_initializer()
        return "its weight is not a plain or block format in a file, as f32" if stored else NO_WEIGHT
    perm = transpose.attributes.get("perm")
    if len(bound.shape) != 2 or (perm is not None and list(perm.as_ints()) != [1, 0]):
        return f"its weight should be [out, in] and transposed once, it is {list(bound.shape)}"
    if match.token_width(x) != bound.shape[1]:
        return f"its input should be [batch, seq, {bound.shape[1]}], it is {_text(match.dims(x))}"
    return ""


def _text(shape: match.Dims | None) -> str:
    return "of unknown shape" if shape is None else f"[{', '.join(map(str, shape))}]"


def _bias_add(node: ir.Node) -> tuple[ir.Node, ir.Value] | None:
    """The Add of a vector `[out]` that alone reads the product, and that vector."""
    product = node.outputs[0]
    if not match.used_once(product):
        return None
    add = match.users(product)[0]
    if not match.is_op(add, "Add"):
        return None
    bias = add.inputs[1] if add.inputs[0] is product else add.inputs[0]
    width = match.token_width(product)
    known = match.bound(bias) is not None or match.constant(bias) is not None
    if bias is None or not known or match.dims(bias) not in ((width,), (1, width), (1, 1, width)):
        return None
    return add, bias
