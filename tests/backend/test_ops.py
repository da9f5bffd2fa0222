"""Every operator of every backend of this machine against its definition."""

from dataclasses import replace

import pytest

from datong.backends.reference import ReferenceBackend
from datong.backends.registry import backend_for
from datong.conformance.ops import cases, run_cases
from datong.spec.backend import Backend
from datong.spec.ops import OPS

BACKENDS = ["reference", "cpu"]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Backend:
    if request.param == "reference":
        return ReferenceBackend.with_fusions()
    return backend_for(request.param)


@pytest.mark.parametrize("op", OPS)
def test_operator_is_right_or_refused(backend: Backend, op: str) -> None:
    results = run_cases(backend, {}, cases(lambda case: case.op == op))
    failures = [f"{r.case}: {r.reason}" for r in results if r.state == "failed"]
    assert not failures, "\n".join([f"{len(failures)} of {len(results)} cases", *failures[:10]])
    if op in backend.fusions() or OPS[op].tier == "core":
        assert {r.state for r in results} == {"passed"}


def test_steps_that_ask_for_no_row(backend: Backend) -> None:
    """A chunk in the middle of a prompt: after the last attention there is nothing to compute."""
    kinds = {(c.op, c.params.get("groups") not in (None, 1, [1, 1])): c for c in cases(lambda c: "tokens" in c.params)}
    fixed = ("embedding", "rope", "take_rows")  # of all tokens, of which there is one at least; of given rows
    empty = [replace(c, params={**c.params, "tokens": 0}) for c in kinds.values() if c.op not in fixed]
    results = run_cases(backend, {}, empty)
    assert not [f"{r.case}: {r.reason}" for r in results if r.state == "failed"]
