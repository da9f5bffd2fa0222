from dataclasses import replace

import onnx_ir as ir
import pytest

from datong.compiler import memory, verify
from datong.errors import VerifyError
from datong.spec.program import Part, Program


def test_reader_before_producer(tiny):
    y = tiny.node("Sigmoid", tiny.act(4))
    z = tiny.node("Sigmoid", y, name="late")
    tiny.nodes.reverse()
    with pytest.raises(VerifyError, match=r"node `late`: input `Sigmoid_0.out` should be made before it"):
        verify.graph(tiny.graph(z), after="x")


def test_value_from_nowhere(tiny):
    with pytest.raises(VerifyError, match="`ghost`"):
        verify.graph(tiny.graph(tiny.node("Sigmoid", ir.Value(name="ghost"))), after="x")


def test_two_values_of_one_name(tiny):
    x = tiny.act(4)
    outs = [tiny.node("Sigmoid", x, outputs=["same"]) for _ in range(2)]
    with pytest.raises(VerifyError, match="should have one producer"):
        verify.graph(tiny.graph(*outs), after="x")


def test_stock_operators_after_lowering(tiny):
    with pytest.raises(VerifyError, match="no stock operator should be left"):
        verify.graph(tiny.graph(tiny.node("Sigmoid", tiny.act(4))), after="x", lowered=True)


def test_unknown_operator_of_our_domain(tiny):
    with pytest.raises(VerifyError, match="`mystery` should be an operator of the set"):
        verify.graph(tiny.graph(tiny.node("mystery", tiny.act(4), domain="datong")), after="x")


def test_output_that_nobody_makes(tiny):
    with pytest.raises(VerifyError, match="graph output `ghost`"):
        verify.graph(tiny.graph(ir.Value(name="ghost")), after="x")


def test_drafts_name_the_pass(sketch):
    x = sketch.embed()
    sketch.node("linear", x, "embed", width=3)
    with pytest.raises(VerifyError, match=r"\[my_pass\] node `linear_1`"):
        verify.draft(sketch.done("linear_1.out"), after="my_pass")


def test_parts_read_only_what_came_before(sketch):
    draft = sketch.done(sketch.linear(sketch.embed(), 4))
    part = memory.plan(draft.as_part())
    verify.program(Program("/p", (part,), 4, 0))
    values = {n: replace(v, kind="input") if n == "embedding_0.out" else v for n, v in part.values.items()}
    alone = Part("b", values, part.nodes[1:], ("embedding_0.out",), part.outputs, ())
    with pytest.raises(VerifyError, match=r"reads `embedding_0.out`, which no earlier part makes"):
        verify.program(Program("/p", (memory.plan(alone),), 4, 0))
