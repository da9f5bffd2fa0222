"""The suite must find what is wrong: it runs backends with known faults here."""

from collections.abc import Callable, Mapping

import numpy as np
import pytest

from datong.backends.reference import ReferenceBackend
from datong.backends.reference.executable import ReferenceExecutable
from datong.conformance import report
from datong.conformance.ops import Case, cases, run_cases
from datong.spec.backend import Cache, No, Yes
from datong.spec.ops import OPS
from datong.spec.program import Node, Part, Step, Value

Outputs = dict[str, np.ndarray]


class Faulty(ReferenceBackend):
    """The reference with a fault behind `run`."""

    def __init__(self, fault: Callable[[Step, Cache | None, Outputs], Outputs]) -> None:
        super().__init__(op for op, row in OPS.items() if row.tier == "fused")
        self.fault = fault

    def compile(self, part: Part, package: str, options: Mapping[str, str]) -> ReferenceExecutable:
        executable = super().compile(part, package, options)
        run, fault = executable.run, self.fault

        def faulty(step: Step, cache: Cache | None, inputs: Mapping[str, np.ndarray]) -> Outputs:
            return fault(step, cache, run(step, cache, inputs))

        executable.run = faulty  # type: ignore[method-assign]
        return executable


def one_per_op() -> list[Case]:
    return list({case.op: case for case in cases(lambda c: c.params.get("rows") != [])}.values())


def failed(fault: Callable[[Step, Cache | None, Outputs], Outputs], selected: list[Case] | None = None) -> set[str]:
    results = run_cases(Faulty(fault), {}, selected or one_per_op())
    return {r.case.op for r in results if r.state == "failed"}


def last_element_off(step: Step, cache: Cache | None, out: Outputs) -> Outputs:
    changed = {name: array.copy() for name, array in out.items()}
    for array in changed.values():
        array.flat[-1] += 0.3 * max(1.0, float(np.nan_to_num(np.abs(array), posinf=0.0).max()))
        if not np.isfinite(array.flat[-1]):
            array.flat[-1] = 0.0
    return changed


def test_every_operator_has_cases() -> None:
    assert {case.op for case in cases()} == set(OPS)
    assert len({str(case) for case in cases()}) == len(cases())


def test_the_unchanged_reference_passes() -> None:
    assert failed(lambda step, cache, out: out) == set()


@pytest.mark.parametrize(
    "fault",
    [
        last_element_off,
        lambda step, cache, out: {n: np.full_like(a, np.nan) for n, a in out.items()},
        lambda step, cache, out: {n: a.astype(np.float64) for n, a in out.items()},
        lambda step, cache, out: {n: a[:, :0] for n, a in out.items()},
    ],
    ids=["last element", "nan", "float64", "empty"],
)
def test_a_fault_fails_every_operator(fault: Callable[[Step, Cache | None, Outputs], Outputs]) -> None:
    assert failed(fault) == set(OPS)


def test_a_cache_whose_blocks_are_not_copied_is_found() -> None:
    class Lazy(ReferenceBackend):
        def compile(self, part: Part, package: str, options: Mapping[str, str]) -> ReferenceExecutable:
            executable = super().compile(part, package, options)
            create = executable.create_cache

            def forgetful(blocks: int):  # type: ignore[no-untyped-def]
                cache = create(blocks)
                cache.copy_block = lambda source, target: None  # type: ignore[method-assign]
                return cache

            executable.create_cache = forgetful  # type: ignore[method-assign]
            return executable

    selected = cases(lambda c: c.op == "attention" and c.params["sequences"][0] == [5, 1])
    assert {r.state for r in run_cases(Lazy(), {}, selected)} == {"failed"}


def test_a_refusal_needs_a_reason_and_an_exception_is_a_failure() -> None:
    class Silent(ReferenceBackend):
        def supports(self, node: Node, values: Mapping[str, Value]) -> Yes | No:
            return No("") if node.op == "add" else No("not today")

    results = run_cases(Silent(), {}, one_per_op())
    assert {r.case.op for r in results if r.state == "failed"} == {"add"}
    assert {r.reason for r in results if r.state == "failed"} == {"refused without a reason"}

    results = run_cases(ReferenceBackend(), {"cache_dtype": "i4"}, one_per_op())
    assert "cache_dtype should be f32, f16 or bf16, is `i4`" in results[0].reason
    assert results[0].state == "failed"


def test_an_f16_cache_is_within_its_bound_and_a_bf16_one_is_not_f16() -> None:
    selected = cases(lambda c: c.op == "attention")
    for dtype in ("f16", "bf16"):
        results = run_cases(ReferenceBackend(), {"cache_dtype": dtype}, selected)
        assert {r.state for r in results} == {"passed"}
        assert max(r.nmse for r in results) > 1e-9


def test_summary_and_table_say_what_came_out() -> None:
    backend = ReferenceBackend()
    results = run_cases(backend, {}, one_per_op())
    summary = report.summary(results, backend)
    assert summary["levels"] == {
        "L1": {"passed": sum(row.tier == "core" for row in OPS.values()), "failed": 0, "refused": 0},
        "L2": {"passed": 0, "failed": 0, "refused": 4},
    }
    assert summary["backend"] == "reference"
    linear = next(row for row in summary["operators"] if row["op"] == "linear")
    assert linear["implementations"] == ["numpy linear"]
    assert report.table(results, backend).row_count == len(OPS)
