from datong.compiler.passes import fuse_add_rms_norm


def test_the_sum_stays_readable(sketch):
    x = sketch.embed()
    total = sketch.add(x, sketch.linear(x, 8), out="sum")
    normed = sketch.norm(total, name="norm")
    draft = sketch.run(sketch.done(sketch.add(total, normed)), fuse_add_rms_norm)
    assert sketch.ops(draft) == ["embedding", "linear", "add_rms_norm", "add"]
    node = draft.nodes[2]
    assert node.inputs == (x, "linear_1.out", "norm.w") and node.outputs == ("sum", "norm.out")
    assert node.attrs == {"eps": 0.1, "offset": 0.0}


def test_stands_before_readers_of_the_sum(sketch):
    x = sketch.embed()
    total = sketch.add(x, x, out="sum")
    other = sketch.linear(total, 8)
    draft = sketch.run(sketch.done(sketch.add(other, sketch.norm(total))), fuse_add_rms_norm)
    assert sketch.ops(draft) == ["embedding", "add_rms_norm", "linear", "add"]


def test_norm_of_heads_stays(sketch):
    x = sketch.embed()
    draft = sketch.run(sketch.done(sketch.norm(sketch.add(x, x), size=4)), fuse_add_rms_norm)
    assert sketch.ops(draft) == ["embedding", "add", "rms_norm"]


def test_of_two_norms_the_first(sketch):
    x = sketch.embed()
    total = sketch.add(x, x)
    draft = sketch.run(sketch.done(sketch.add(sketch.norm(total), sketch.norm(total))), fuse_add_rms_norm)
    assert sketch.ops(draft) == ["embedding", "add_rms_norm", "rms_norm", "add"]
