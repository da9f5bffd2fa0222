"""The whole compiler on tiny decoders: what it makes, what it refuses, and that it refuses by name."""

import numpy as np
import onnx_ir as ir
import pytest

from datong.backends.reference.backend import ReferenceBackend
from datong.compiler import explain, pipeline, plan
from datong.compiler.pipeline import compile_graph
from datong.errors import CompileError, DatongError, Unsupported
from datong.spec.program import ROWS

REFERENCE = ReferenceBackend()


def decoder(tiny, middle=None, *, caches=True):
    """One layer of attention without rope, `middle(tiny, x)` after it, x [batch, seq, 16], and logits."""
    ids = tiny.input("input_ids", ["b", "s"], ir.DataType.INT64)
    x = tiny.node("Gather", tiny.weight("embed", [11, 16]), ids, name="embed")
    qkv = [tiny.linear(x, tiny.weight(f"{n}_w", [16, 16]), n) for n in "qkv"]
    pasts = [tiny.input(f"past_key_values.0.{kind}", ["b", 2, "p", 8]) for kind in ("key", "value")] if caches else []
    outputs = ["y", "present.0.key", "present.0.value"] if caches else ["y"]
    made = tiny.node("Attention", *qkv, None, *pasts, outputs=outputs, name="attention",
                     q_num_heads=2, kv_num_heads=2, is_causal=1)  # fmt: skip
    y, *presents = made if caches else [made]
    x = tiny.node("Add", x, y, name="residual")
    x = middle(tiny, x) if middle else x
    logits = tiny.linear(x, tiny.weight("head", [11, 16]), "head")
    logits.name = "logits"
    return tiny.model(logits, *presents)


def compiled(tiny, model, **options):
    return compile_graph(model, tiny.root, [REFERENCE], **options)


def test_a_tiny_decoder(tiny):
    program = compiled(tiny, decoder(tiny), strict=True, verify=True)
    (part,) = program.parts
    assert [node.op for node in part.nodes] == [
        "embedding", "linear", "linear", "linear", "attention", "take_rows", "take_rows", "add", "linear",
    ]  # fmt: skip
    assert program.vocab_size == 11 and part.values["logits"].shape == (ROWS, 11)
    assert part.inputs == ("ids", "rows") and part.outputs == ("logits",)
    assert program.package == str(tiny.root)


def test_the_model_is_not_changed(tiny):
    model = decoder(tiny)
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    first = compiled(tiny, model)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
    assert compiled(tiny, model) == first


def test_same_input_same_bytes(tiny):
    model = decoder(tiny)
    assert plan.to_json(compiled(tiny, model)) == plan.to_json(compiled(tiny, model))


# ---- foreign graphs: refused, by name, with the reason ------------------------------------------------------------


def mean_over_seq(t, x):
    return t.node("Add", x, t.node("ReduceMean", x, t.const([1]), name="pool"))


def softmax_over_seq(t, x):
    return t.node("Softmax", x, axis=1, name="soft")


def softmax_over_width(t, x):
    return t.node("Softmax", x, name="soft")


def cumulative(t, x):
    return t.node("CumSum", x, t.const(1), name="cumsum")


def shifted(t, x):
    turned = t.node("Transpose", x, perm=[1, 0, 2], name="turn")
    return t.node("Transpose", turned, perm=[1, 0, 2], name="back")


def merged(t, x):
    return t.node("Reshape", t.node("Reshape", x, t.const([-1, 16]), name="merge"), t.const([1, -1, 16]))


def halves_joined(t, x):
    return t.node("Concat", x, x, axis=1, name="concat")


def layer_norm_over_all(t, x):
    return t.node("LayerNormalization", x, t.weight("n", [16]), axis=1, name="norm")


def unknown(t, x):
    return t.node("Mystery", x, domain="com.example", name="mystery")


def own_domain(t, x):
    return t.node("not_a_row", x, domain="datong", name="pretender")


def scores(t, x):
    turned = t.node("Transpose", x, perm=[0, 2, 1], name="keys")
    return t.node("MatMul", t.node("MatMul", x, turned), x)


def stored_the_other_way(t, x):
    return t.node("MatMul", x, t.weight("w", [16, 16]), name="gpt2")


def scaled_weight(t, x):
    return t.linear(x, t.node("Mul", t.weight("w", [16, 16]), t.const(2.0, np.float32)), "proj")


def scaled(t, x):
    return t.node("Mul", x, t.const([2.0] * 16, np.float32), name="scale")


def foreign_block(t, x):
    codes = t.weight("w", [16, 1, 16], ir.DataType.INT8, np.zeros(256, np.int8))
    scale = t.weight("w.scale", [16, 1, 1])
    w = t.node("DequantizeLinear", codes, scale, axis=2, block_size=16, name="dequantize")
    return t.linear(x, t.reshape(w, 16, 16))


FOREIGN = [
    (mean_over_seq, "pool", "mixes tokens: it acts on axis 1 (seq)"),
    (softmax_over_seq, "soft", "mixes tokens: it acts on axis 1 (seq)"),
    (softmax_over_width, "soft", "`Softmax` is not in the operator set"),
    (cumulative, "cumsum", "axis 1 (seq)"),
    (shifted, "turn", "axis 0 (batch) and axis 1 (seq)"),
    (merged, "merge", "axis 0 (batch) and axis 1 (seq)"),
    (halves_joined, "concat", "axis 1 (seq)"),
    (layer_norm_over_all, "norm", "axis 1 (seq)"),
    (unknown, "mystery", "`com.example::Mystery` is unknown"),
    (own_domain, "pretender", "`datong::not_a_row` is unknown"),
    (scores, "keys", "axis 1 (seq)"),
    (stored_the_other_way, "gpt2", "stored [in, out]"),
    (scaled_weight, "proj", "computed in the graph"),
    (scaled, "scale", "one width"),
    (foreign_block, "dequantize", "no row of spec/formats.py has blocks of 16"),
]


@pytest.mark.parametrize(("build", "name", "text"), FOREIGN, ids=[f[0].__name__ for f in FOREIGN])
def test_refused_by_name(tiny, build, name, text):
    with pytest.raises(Unsupported) as error:
        compiled(tiny, decoder(tiny, build))
    reasons = dict(error.value.reasons)
    assert text in reasons[name]
    assert name in str(error.value) and error.value.hint
    assert name in explain.explain_unsupported(error.value)
    assert len(reasons) == 1  # what hangs on the refused node is not blamed


def test_every_culprit_is_listed(tiny):
    def two(t, x):
        return t.node("Add", softmax_over_seq(t, x), unknown(t, x))

    with pytest.raises(Unsupported, match="1 more nodes refused") as error:
        compiled(tiny, decoder(tiny, two))
    assert [name for name, _ in error.value.reasons] == ["soft", "mystery"]


def test_attention_without_cache_is_refused(tiny):
    with pytest.raises(Unsupported, match="without a cache it sees no past"):
        compiled(tiny, decoder(tiny, caches=False))


def test_a_node_without_name_gets_one(tiny):
    def nameless(t, x):
        out = t.node("Softmax", x, axis=1)
        out.producer().name = None
        return out

    with pytest.raises(Unsupported, match=r"node `\w*Softmax\w*` has no form"):
        compiled(tiny, decoder(tiny, nameless))


def test_logits_straight_from_an_input_are_refused(tiny):
    ids = tiny.input("input_ids", ["b", "s"], ir.DataType.INT64)
    with pytest.raises(DatongError):
        compiled(tiny, tiny.model(tiny.node("Identity", ids, outputs=["logits"])))


def test_functions_are_inlined(tiny):
    x, y = ir.Value(name="fx"), ir.Value(name="fy")
    body = ir.Graph([x], [y], nodes=[ir.node("Sigmoid", [x], outputs=[y], name="inner")], opset_imports={"": 27})
    model = decoder(tiny, lambda t, v: t.node("Gate", v, domain="datong", name="call"))
    model.functions[("datong", "Gate", "")] = ir.Function("datong", "Gate", graph=body, attributes=[])
    model.graph.opset_imports["datong"] = 1
    program = compiled(tiny, model, verify=True)
    assert "sigmoid" in [node.op for node in program.parts[0].nodes]


def test_functions_that_call_each_other_in_a_ring_are_refused(tiny):
    x, y = ir.Value(name="fx"), ir.Value(name="fy")
    nodes = [ir.node("Gate", [x], domain="datong", outputs=[y])]
    body = ir.Graph([x], [y], nodes=nodes, opset_imports={"": 27, "datong": 1})
    model = decoder(tiny, lambda t, v: t.node("Gate", v, domain="datong", name="call"))
    model.functions[("datong", "Gate", "")] = ir.Function("datong", "Gate", graph=body, attributes=[])
    model.graph.opset_imports["datong"] = 1
    with pytest.raises(CompileError, match="cannot be inlined"):
        compiled(tiny, model)


def test_verify_runs_on_request(tiny, monkeypatch):
    seen = []
    monkeypatch.setattr(pipeline.check, "graph", lambda g, after, lowered=False: seen.append(after))
    model = decoder(tiny)
    compiled(tiny, model)
    assert not seen
    monkeypatch.setenv("DATONG_VERIFY", "1")
    compiled(tiny, model)
    assert seen == [name for name, _ in pipeline.FRONT]


def test_every_pass_states_requires_rules_and_ensures():
    for name, run in (*pipeline.FRONT, *pipeline.BACK, *pipeline.FUSE):
        text = __import__(run.__module__, fromlist=["x"]).__doc__
        assert run.__module__.endswith(f".passes.{name}")
        assert all(word in text for word in ("Requires:", "Rules:", "Ensures:", "  1. ")), name
