"""The node tests as they are, through ONNX Runtime: what the suite says about a provider without our operator set.

A sanity check of the tests themselves, and the way to ask a vendor's execution provider. Expanded twins run too.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnxruntime  # type: ignore[import-untyped]

from datong.backends.onnxruntime.providers import Provider, one_line
from datong.conformance.onnx_suite import NodeTest, TestResult, collect, judge

_UNOPENED = "ONNX Runtime does not open it: {}"


def run_directly(provider: Provider, tests: Iterable[NodeTest] | None = None) -> list[TestResult]:
    """Run the tests (default: all) on an execution provider; what ONNX Runtime puts elsewhere is not claimed."""
    return [_run(provider, test) for test in (collect() if tests is None else tests)]


def _run(provider: Provider, test: NodeTest) -> TestResult:
    def result(state: str, reason: str = "", worst: float = 0.0) -> TestResult:
        refused = state == "not claimed"
        return TestResult(test.name, test.op, test.expanded, state, reason, "the test's own graph", refused, worst)

    # isbuiltin: 1 for types of NumPy itself, 2 for those of ml_dtypes
    odd = next((a.dtype.name for a in (*test.feed.values(), *test.answers) if a.dtype.isbuiltin != 1), None)
    if odd is not None:
        return result("not claimed", f"the Python binding of ONNX Runtime cannot pass {odd}")
    try:
        settings, chosen = provider.configure({})
        settings.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(test.model.SerializeToString(), settings, **chosen)
    except Exception as error:  # the exceptions of ONNX Runtime have no common base
        return result("not claimed", _UNOPENED.format(one_line(error).partition("] : ")[2][:160]))
    homes = {piece.ep_name for piece in session.get_provider_graph_assignment_info()}
    if elsewhere := sorted(homes - {provider.name}):
        return result("not claimed", f"ONNX Runtime puts it on {', '.join(elsewhere)}")
    try:
        answers = session.run(None, dict(test.feed))
    except Exception as error:
        return result("failed", one_line(error), float("inf"))
    verdicts = [judge(test, np.asarray(a), e) for a, e in zip(answers, test.answers, strict=True)]
    return result(*next((v for v in verdicts if v[0] != "passed"), max(verdicts, key=lambda v: v[2])))
