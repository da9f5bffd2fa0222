"""The tests to copy with the template: what a new backend shows first."""

import numpy as np
import pytest

from datong.backends.template import TemplateBackend, create
from datong.conformance.build import PartBuilder
from datong.conformance.ops import cases, run_cases
from datong.errors import DeviceError, Unsupported
from datong.spec.backend import Backend
from datong.spec.program import TOKENS


def test_it_is_a_backend() -> None:
    assert isinstance(create(), Backend)
    assert [d.name for d in create().devices()] == ["template"]


def test_add_is_right_and_the_rest_is_refused_with_a_reason() -> None:
    results = run_cases(create())
    assert {r.case.op for r in results if r.state == "passed"} == {"add"}
    assert not [r for r in results if r.state == "failed"]
    assert all(r.reason for r in results if r.state == "refused")
    assert len(results) == len(cases())


def test_compile_refuses_with_all_reasons() -> None:
    with PartBuilder(0) as b:
        b.input("x", (TOKENS, 4))
        b.node("mul", ["x", "x"], [("y", (TOKENS, 4))])
        with pytest.raises(Unsupported) as caught:
            TemplateBackend().compile(b.part(["y"]), b.package, {})
    assert caught.value.reasons == [("mul_0", "operator `mul` is not implemented yet; this backend has add")]


def test_a_missing_input_is_refused() -> None:
    from datong.spec.program import Step

    with PartBuilder(0) as b:
        b.input("x", (TOKENS, 4))
        b.node("add", ["x", "x"], [("y", (TOKENS, 4))])
        executable = TemplateBackend().compile(b.part(["y"]), b.package, {})
    one = np.zeros(1, np.int64)
    step = Step(one, one, np.array([0, 1]), np.array([1]), np.zeros((1, 0), np.int32), one[:0])
    with pytest.raises(DeviceError, match="input `x` should be given"):
        executable.run(step, None, {})
