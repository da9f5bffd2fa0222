"""Does this backend tell the truth? Operators first, then whole small models, against the definitions."""

import pytest
from datong.backends.registry import backend_for
from datong.conformance.models import MODELS, run_models
from datong.conformance.ops import cases, run_case
from datong.spec.backend import Backend
from datong.spec.ops import CORE
from datong_template import create


def test_it_is_a_backend_that_datong_finds() -> None:
    assert isinstance(create(), Backend)
    assert backend_for("template").name == "template", "install the project: pip install -e ."
    assert [device.evidence for device in create().devices()] == ["measured"]  # CHIP: what is true of yours


@pytest.mark.parametrize("op", [op.name for op in CORE])
def test_operator(op: str) -> None:
    results = [run_case(create(), case) for case in cases(lambda case: case.op == op)]
    assert [f"{r.case}: {r.reason}" for r in results if r.state == "failed"] == []
    assert all(r.reason for r in results if r.state == "refused")
    assert any(r.state == "passed" for r in results)  # CHIP: not of an operator that you give back


def test_whole_models() -> None:
    results = list(run_models("template"))
    assert [f"{r.model}: {r.reason}" for r in results if r.state != "passed"] == []
    assert len(results) == len(MODELS)
    assert {r.elsewhere for r in results} == {()}  # CHIP: nodes that another backend ran
