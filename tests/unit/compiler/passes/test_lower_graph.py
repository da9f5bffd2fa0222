import numpy as np
import onnx_ir as ir
import pytest

from datong.compiler import verify
from datong.compiler.passes import flatten_tokens, lower_graph, recognise_elementwise, recognise_linear
from datong.errors import CompileError


def ids_as(tiny, width):
    """An activation out of nothing but the ids."""
    ids = tiny.ids()
    made = ir.node("embedding", [ids, tiny.weight("embed", [7, width])], domain="datong", outputs=[ir.Value(name="x")])
    made.outputs[0].meta["dims"] = ("batch", "seq", width)
    tiny.nodes.append(made)
    return made.outputs[0]


def run(tiny, out):
    out.name = "logits"
    graph = tiny.run([out], recognise_linear, recognise_elementwise, flatten_tokens)
    return lower_graph.run(graph)


def test_values_and_nodes(tiny):
    x = ids_as(tiny, 8)
    y = tiny.linear(x, tiny.weight("w", [4, 8]), "proj")
    draft = run(tiny, tiny.node("Add", y, tiny.const(np.ones((1, 1, 4)), np.float32), name="bias"))
    verify.draft(draft, after="the test")
    assert [(n.op, n.name) for n in draft.nodes] == [("embedding", draft.nodes[0].name), ("linear", "proj+bias")]
    kinds = {name: (v.kind, v.shape) for name, v in draft.values.items()}
    bias = draft.nodes[1].inputs[2]
    assert kinds["ids"] == ("input", ("T",)) and kinds["logits"] == ("temp", ("T", 4))
    assert kinds["w"] == ("weight", (4, 8)) and kinds[bias] == ("const", (4,))
    assert draft.values[bias].data == (1.0, 1.0, 1.0, 1.0)


def test_names_that_clash_are_made_unique(tiny):
    x = ids_as(tiny, 8)
    x.name = "rows"  # a Step brings its own
    y = tiny.linear(x, tiny.weight("logits", [8, 8]), "same")
    z = tiny.linear(y, tiny.weight("y", [8, 8]), "same")
    y.name = "y"
    draft = run(tiny, z)
    verify.draft(draft, after="the test")
    assert len({n.name for n in draft.nodes}) == 3
    assert draft.values["logits"].kind == "temp" and draft.nodes[1].inputs[1] == "logits#1"
    assert "rows" not in draft.values


def test_a_tied_weight_is_one_value(tiny):
    x = ids_as(tiny, 8)
    w = tiny.weight("w", [8, 8], ir.DataType.BFLOAT16)
    casts = [tiny.node("Cast", w, to=ir.DataType.FLOAT) for _ in range(2)]
    draft = run(tiny, tiny.linear(tiny.linear(x, casts[0]), casts[1]))
    assert [n.inputs[1] for n in draft.nodes[1:]] == ["w", "w"]


def test_a_cache_that_nobody_reads_is_refused(tiny):
    tiny.past(0, "key", 2, 4)
    with pytest.raises(CompileError, match=r"cache `past_key_values.0.key` is read by no operator"):
        run(tiny, tiny.linear(ids_as(tiny, 8), tiny.weight("w", [8, 8])))


def test_constants_that_json_cannot_hold_are_refused(tiny):
    y = tiny.linear(ids_as(tiny, 8), tiny.weight("w", [4, 8]))
    with pytest.raises(CompileError, match="small finite f32"):
        run(tiny, tiny.node("Add", y, tiny.const([np.inf] * 4, np.float32)))


def test_two_attentions_on_one_cache_are_refused(tiny):
    x = ids_as(tiny, 8)
    attrs = {"layer": 0, "num_heads": 1, "num_kv_heads": 1, "scale": 1.0, "window": 0, "softcap": 0.0}
    for _ in range(2):
        node = ir.node("attention", [x, x, x], attrs, domain="datong", outputs=[ir.Value(name=f"y{len(tiny.nodes)}")])
        x = node.outputs[0]
        x.meta["dims"] = ("batch", "seq", 8)
        tiny.nodes.append(node)
    with pytest.raises(CompileError, match="cache of layer 0"):
        run(tiny, x)
