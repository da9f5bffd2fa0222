import onnx_ir as ir
import pytest

from datong.compiler.passes import check_nodes
from datong.errors import CompileError, Unsupported


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda t: t.node("MatMul", t.act(4), name="n"), "should have 2 to 2 inputs, it has 1"),
        (lambda t: t.node("MatMul", None, t.act(4), name="n"), "one is empty"),
        (lambda t: t.node("Sigmoid", t.act(4), t.act(4), name="n"), "1 to 1 inputs, it has 2"),
        (lambda t: t.node("Sigmoid", t.act(4), outputs=["a", "b"], name="n")[0], "1 to 1 outputs, it has 2"),
        (lambda t: t.node("Softmax", t.act(4), axis="last", name="n"), "no attribute `axis` of type STRING"),
        (lambda t: t.node("Sigmoid", t.act(4), depth=3, name="n"), "no attribute `depth`"),
        (lambda t: t.node("Cast", t.act(4), name="n"), "should have the attribute `to`"),
    ],
)
def test_malformed_nodes_are_refused_by_name(tiny, build, text):
    with pytest.raises(CompileError) as error:
        check_nodes.run(tiny.graph(build(tiny)), tiny.root)
    assert "node `n`" in str(error.value) and text in str(error.value)


def test_well_formed_and_unknown_nodes_pass(tiny):
    x = tiny.act(4)
    y = tiny.node("Mystery", tiny.node("Clip", x, None, tiny.act(1)), domain="com.example", odd=[1.5])
    check_nodes.run(tiny.graph(tiny.node("NoSuchOp", y)), tiny.root)


def test_control_flow_is_refused(tiny):
    branch = ir.Graph([], [ir.Value(name="o")], nodes=[], name="branch")
    out = tiny.node("If", tiny.const([True], bool), name="choose", then_branch=branch, else_branch=branch)
    with pytest.raises(Unsupported, match="node `choose`: `If` is control flow"):
        check_nodes.run(tiny.graph(out), tiny.root)
