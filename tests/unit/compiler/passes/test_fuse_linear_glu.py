import pytest

from datong.backends.reference.backend import ReferenceBackend
from datong.compiler.passes import fuse_linear_glu


def mlp(sketch, *, bias=False, other=False, twice=False, same=False):
    x = sketch.embed()
    gate = sketch.linear(x, 16, "gate", bias=bias)
    up = gate if same else sketch.linear(sketch.norm(x) if other else x, 16, "up")
    y = sketch.node("glu", gate, up, width=16, kind="silu", name="glu")
    return sketch.done(sketch.add(y, gate) if twice else y)


def test_forms(sketch):
    draft = sketch.run(mlp(sketch), fuse_linear_glu)
    assert sketch.ops(draft) == ["embedding", "linear_glu"]
    node = draft.nodes[1]
    assert node.inputs == ("embedding_0.out", "gate.w", "up.w")
    assert node.outputs == ("glu.out",) and node.name == "gate+up+glu" and node.attrs == {"kind": "silu"}


@pytest.mark.parametrize("change", [{"bias": True}, {"other": True}, {"twice": True}, {"same": True}])
def test_illegal_ones_stay(sketch, change):
    assert "linear_glu" not in sketch.ops(sketch.run(mlp(sketch, **change), fuse_linear_glu))


def test_only_if_claimed(sketch):
    draft = sketch.run(mlp(sketch), fuse_linear_glu, backends=[ReferenceBackend(["linear_multi"])])
    assert "linear_glu" not in sketch.ops(draft)


def test_product_that_is_the_output_stays(sketch):
    mlp(sketch)
    assert "linear_glu" not in sketch.ops(sketch.run(sketch.done("gate.out"), fuse_linear_glu))
