import pytest

from datong.compiler.passes import fuse_linear_add


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_forms_in_either_order(sketch, swap, bias):
    x = sketch.embed()
    y = sketch.linear(x, 8, "o", bias=bias)
    draft = sketch.run(sketch.done(sketch.add(*((y, x) if swap else (x, y)), out="sum")), fuse_linear_add)
    assert sketch.ops(draft) == ["embedding", "linear_add"]
    assert draft.nodes[1].inputs == (x, "o.w", x, *(["o.b"] if bias else []))
    assert draft.nodes[1].outputs == ("sum",)


def test_of_two_linears_the_later(sketch):
    x = sketch.embed()
    a, b = sketch.linear(x, 8, "a"), sketch.linear(x, 8, "b")
    draft = sketch.run(sketch.done(sketch.add(b, a)), fuse_linear_add)
    assert sketch.ops(draft) == ["embedding", "linear", "linear_add"]
    assert draft.nodes[2].inputs == (x, "b.w", a)


def test_a_product_with_other_readers_stays(sketch):
    x = sketch.embed()
    y = sketch.linear(x, 8)
    draft = sketch.run(sketch.done(sketch.node("mul", sketch.add(x, y), y, width=8)), fuse_linear_add)
    assert "linear_add" not in sketch.ops(draft)


def test_twice_the_product_stays(sketch):
    y = sketch.linear(sketch.embed(), 8)
    assert "linear_add" not in sketch.ops(sketch.run(sketch.done(sketch.add(y, y)), fuse_linear_add))


def test_a_chain_of_residuals(sketch):
    x = sketch.embed()
    for name in "abc":
        x = sketch.add(x, sketch.linear(sketch.norm(x), 8, name))
    draft = sketch.run(sketch.done(x), fuse_linear_add)
    assert sketch.ops(draft) == ["embedding", *["rms_norm", "linear_add"] * 3]
