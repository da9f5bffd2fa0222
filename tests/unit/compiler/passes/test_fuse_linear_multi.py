from datong.compiler.partition import Placer
from datong.compiler.passes import fuse_linear_multi


def qkv(sketch, formats=("f32", "f32", "f32")):
    x = sketch.embed(256)
    outs = [sketch.linear(x, 8, name, fmt, bias=name == "k") for name, fmt in zip("qkv", formats, strict=True)]
    return sketch.done(sketch.add(sketch.add(*outs[:2]), outs[2]))


def test_forms_with_its_biases(sketch):
    draft = sketch.run(qkv(sketch), fuse_linear_multi)
    assert sketch.ops(draft) == ["embedding", "linear_multi", "add", "add"]
    node = draft.nodes[1]
    assert node.inputs == ("embedding_0.out", "q.w", "k.w", "v.w", "", "k.b", "")
    assert node.outputs == ("q.out", "k.out", "v.out") and node.attrs == {"count": 3}


def one_format(node, values):
    weights = [values[name].format for name in node.inputs[1 : 1 + node.attrs.get("count", 0)]]
    return "mixed formats" if len(set(weights)) > 1 else ""


def test_groups_of_one_format_where_the_whole_is_refused(sketch, picky):
    backend = picky("chip", one_format, ["linear_multi"])
    draft = qkv(sketch, ("q4_k", "q4_k", "q6_k"))
    placer = Placer([backend])
    assert fuse_linear_multi.run(draft, placer) == 1
    assert sketch.ops(draft) == ["embedding", "linear_multi", "linear", "add", "add"]
    assert draft.nodes[1].outputs == ("q.out", "k.out")
    assert placer.unfused == [("chip", "q+k+v", "linear_multi not formed: mixed formats")]


def test_one_linear_stays(sketch):
    draft = sketch.run(sketch.done(sketch.linear(sketch.embed(), 8)), fuse_linear_multi)
    assert sketch.ops(draft) == ["embedding", "linear"]


def test_linears_on_two_backends_stay(sketch, picky):
    first = picky("first", lambda n, _: "no k" if n.name == "k" else "", ["linear_multi"])
    second = picky("second", lambda n, _: "", ["linear_multi"])
    draft = sketch.run(qkv(sketch), fuse_linear_multi, backends=[first, second])
    assert "linear_multi" not in sketch.ops(draft)
