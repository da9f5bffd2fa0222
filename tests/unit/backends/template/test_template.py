"""The backend to copy is complete and right; deleting an operator hands it to another backend."""

import numpy as np
import pytest

from datong.backends.template import TemplateBackend, create
from datong.backends.template.kernels import KERNELS
from datong.conformance.build import PartBuilder
from datong.conformance.ops import cases, run_cases
from datong.errors import DeviceError, Unsupported
from datong.spec.backend import Backend
from datong.spec.ops import CORE
from datong.spec.program import TOKENS, Step


def test_it_is_a_backend() -> None:
    assert isinstance(create(), Backend)
    assert [d.name for d in create().devices()] == ["template"]


def test_every_core_operator_is_right_and_fused_ones_are_refused_with_a_reason() -> None:
    results = run_cases(create())
    assert {r.case.op for r in results if r.state == "passed"} == {op.name for op in CORE}
    assert [f"{r.case}: {r.reason}" for r in results if r.state == "failed"] == []
    assert {r.case.level for r in results if r.state == "refused"} == {"L2"}
    assert len(results) == len(cases())


def test_a_deleted_operator_is_refused_with_all_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(KERNELS, "mul")
    with PartBuilder(0) as b:
        b.input("x", (TOKENS, 4))
        b.node("mul", ["x", "x"], [("y", (TOKENS, 4))])
        with pytest.raises(Unsupported) as caught:
            TemplateBackend().compile(b.part(["y"]), b.package, {})
    [(node, reason)] = caught.value.reasons
    assert node == "mul_0" and reason.startswith("operator `mul` has no kernel here; there are add, attention")


def test_bad_inputs_are_refused() -> None:
    with PartBuilder(0) as b:
        b.input("x", (TOKENS, 4))
        b.node("add", ["x", "x"], [("y", (TOKENS, 4))])
        executable = TemplateBackend().compile(b.part(["y"]), b.package, {})
    one = np.zeros(1, np.int64)
    step = Step(one, one, np.array([0, 1]), np.array([1]), np.zeros((1, 0), np.int32), one[:0])
    with pytest.raises(DeviceError, match="input `x` should be given"):
        executable.run(step, None, {})
    with pytest.raises(DeviceError, match=r"target block should lie in 0\.\.1, is 2"):
        executable.create_cache(2).copy_block(0, 2)


def test_an_id_outside_the_vocabulary_is_refused() -> None:
    with PartBuilder(0) as b:
        b.input("ids", (TOKENS,), "i64")
        b.node("embedding", ["ids", b.weight("w", "f32", (5, 4))], [("y", (TOKENS, 4))])
        executable = TemplateBackend().compile(b.part(["y"]), b.package, {})
        zero = np.zeros(1, np.int64)
        step = Step(zero + 5, zero, np.array([0, 1]), np.array([1]), np.zeros((1, 0), np.int32), zero[:0])
        with pytest.raises(DeviceError, match=r"ids should lie in 0\.\.4, they reach 5"):
            executable.run(step, None, {})
