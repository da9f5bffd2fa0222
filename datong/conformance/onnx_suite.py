"""The node tests of the ONNX backend test suite, which nobody here wrote, run against a backend of ours.

    results = run_suite(backend)                  one TestResult per test of OPERATORS; none is dropped
    onnx_suite_report.summary(results), .table(results)

A node test is one ONNX node with inputs and expected outputs. `onnx_suite_forms` expresses it as a part in our operator
set, or says why it cannot: `not claimed`. What is claimed runs on the backend and is compared with the suite's answer
in the suite's own tolerance. The tests come with the package onnx; some answers are new in each version of it.

Expanded twins (`test_x_expanded`) hold the function body of the operator in many primitive nodes, with the inputs and
outputs of `test_x`. A part of ours is not that graph, so they are not claimed; ONNX Runtime runs them directly.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from datong.backends.onnxruntime import OnnxRuntimeBackend
from datong.backends.registry import backend_for
from datong.conformance.build import PartBuilder
from datong.conformance.parts import Scene
from datong.errors import DatongError
from datong.spec.backend import Backend, No

Array = NDArray[Any]

# Every ONNX operator that graph.onnx of a package may hold (spec/ops.py, column `onnx`; formats.py), and three more
# that mean one of ours: Gemm (linear), Swish and SwiGLU (glu). A test holds the list to the goldens' graphs.
OPERATORS = (
    "Add", "Attention", "Cast", "Cos", "DequantizeLinear", "Gather", "Gemm", "MatMul", "Mul", "RMSNormalization",
    "Reshape", "RotaryEmbedding", "Sigmoid", "Sin", "Slice", "Sub", "SwiGLU", "Swish", "Transpose", "Unsqueeze",
)  # fmt: skip
# The columns of docs/reference/onnx-suite.md: ours, PyTorch, the simulated chips, and the tests' own graphs.
DEVICES = (
    "reference", "cpu", "torch:cpu", "sim:ascend-910b", "sim:biren-br1xx", "sim:biren-br2xx", "sim:enflame-s60",
    "sim:moorethreads-s5000", "sim:iluvatar-bi-v150", "sim:metax-c500", "onnxruntime",
)  # fmt: skip
_EXPANDED = re.compile(r"(?P<twin>.+)_expanded(_ver\d+)?")


@dataclass(frozen=True)
class NodeTest:
    """One test: a node, what goes in and what must come out."""

    name: str
    op: str  # the ONNX operator
    expanded: bool
    attrs: Mapping[str, Any]
    inputs: Mapping[str, Array]  # operand of the operator's schema -> array; absent ones are missing
    outputs: Mapping[str, Array]
    rtol: float
    atol: float
    model: onnx.ModelProto = field(repr=False)
    feed: Mapping[str, Array] = field(repr=False)  # graph input -> array
    answers: tuple[Array, ...] = field(repr=False)  # of the graph outputs, in order


@dataclass(frozen=True)
class Form:
    """A node test in our operator set."""

    how: str  # in words, for the table
    build: Callable[[PartBuilder], Scene]  # appends the nodes
    output: str  # the part's output to compare
    expected: Array
    shaped: Callable[[Array], Array]  # the output [T, n] in the shape of `expected`


@dataclass(frozen=True)
class TestResult:
    """What came of one test. state: passed | failed | not claimed (with the reason)."""

    __test__ = False  # pytest

    name: str
    op: str
    expanded: bool
    state: str
    reason: str = ""
    how: str = ""
    refused: bool = False  # not claimed by the backend alone: the operator set has a form
    worst: float = 0.0  # largest |difference|


def collect() -> list[NodeTest]:
    """The node tests of OPERATORS, in the suite's order. Takes seconds: every test of the suite is made for it."""
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the suite divides by zero on purpose
        cases = {case.name: case for case in load_model_tests(kind="node")}
    found = []
    for name, case in cases.items():
        twin = _EXPANDED.fullmatch(name)
        model = cases[twin["twin"] if twin else name].model
        node = model.graph.node[0] if model else onnx.NodeProto()
        if node.op_type in OPERATORS and node.domain in ("", "ai.onnx"):
            found.append(_node_test(case, node, expanded=twin is not None))
    return found


def _node_test(case: Any, node: onnx.NodeProto, *, expanded: bool) -> NodeTest:
    schema = onnx.defs.get_schema(node.op_type)
    inputs, answers = case.data_sets[0]
    feed = dict(zip((value.name for value in case.model.graph.input), map(_array, inputs), strict=True))
    given = dict(zip((value.name for value in case.model.graph.output), map(_array, answers), strict=True))
    operands = {p.name: feed[name] for p, name in zip(schema.inputs, node.input, strict=False) if name in feed}
    results = {p.name: given[name] for p, name in zip(schema.outputs, node.output, strict=False) if name in given}
    attrs = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    answers = tuple(given.values())
    return NodeTest(
        case.name, node.op_type, expanded, attrs, operands, results, case.rtol, case.atol, case.model, feed, answers
    )


def _array(value: Any) -> Array:
    """The suite gives types that NumPy lacks as protobufs, and some scalars as numbers."""
    return onnx.numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value)


def run_device(
    device: str, options: Mapping[str, str] | None = None, tests: Iterable[NodeTest] | None = None
) -> tuple[Backend, list[TestResult]]:
    """Run the tests on a device by name; ONNX Runtime is given each test's own graph."""
    backend = backend_for(device)
    if isinstance(backend, OnnxRuntimeBackend):
        from datong.conformance.onnx_suite_direct import run_directly

        return backend, run_directly(backend.provider, tests)
    return backend, run_suite(backend, options, tests)


def run_suite(
    backend: Backend, options: Mapping[str, str] | None = None, tests: Iterable[NodeTest] | None = None
) -> list[TestResult]:
    """Run the tests (default: all) on a backend; `options` go to its `compile`."""
    return [run_test(backend, test, options) for test in (collect() if tests is None else tests)]


def run_test(backend: Backend, test: NodeTest, options: Mapping[str, str] | None = None) -> TestResult:
    """Run one test; an exception of the backend is a failure with its text."""
    from datong.conformance.onnx_suite_forms import forms

    found = forms(test)
    if isinstance(found, str):
        return TestResult(test.name, test.op, test.expanded, "not claimed", found)
    results = [_run_form(backend, test, form, options or {}) for form in found]
    return next((r for r in results if r.state != "passed"), max(results, key=lambda r: r.worst))


def _run_form(backend: Backend, test: NodeTest, form: Form, options: Mapping[str, str]) -> TestResult:
    def result(state: str, reason: str = "", worst: float = 0.0, *, refused: bool = False) -> TestResult:
        return TestResult(test.name, test.op, test.expanded, state, reason, form.how, refused, worst)

    with PartBuilder(0, backend.name) as builder:
        scene = form.build(builder)
        part = builder.part([form.output])
        answers = [backend.supports(node, part.values) for node in part.nodes]
        if reasons := [answer.reason for answer in answers if isinstance(answer, No)]:
            return result("not claimed", reasons[0], refused=True)
        try:
            executable = backend.compile(part, builder.package, options)
            size = executable.create_cache(0).layout.block_size if part.caches else 0
            cache = executable.create_cache(scene.blocks(size)) if part.caches else None
            *_, outputs = scene.play(executable, cache)
        except DatongError as error:
            return result("failed", str(error), float("inf"))
    return result(*judge(test, form.shaped(outputs[form.output]), form.expected))


def judge(test: NodeTest, actual: Array, expected: Array) -> tuple[str, str, float]:
    """State, reason and largest difference, by the rule of onnx.backend.test.runner: dtype, shape, assert_allclose."""
    if actual.dtype != expected.dtype or actual.shape != expected.shape:
        wanted, came = (f"{a.dtype}{list(a.shape)}" for a in (expected, actual))
        return "failed", f"should be {wanted}, is {came}", float("inf")
    a, e = actual.astype(np.float64), expected.astype(np.float64)
    same = (a == e) | (np.isnan(a) & np.isnan(e))
    with np.errstate(invalid="ignore"):
        error = np.where(same, 0.0, np.abs(a - e))
        good = same | (np.isfinite(e) & (error <= test.atol + test.rtol * np.abs(e)))
    worst = float(error.max(initial=0.0))
    if bool(good.all()):
        return "passed", "", worst
    at = int(np.argmax(~good))
    place = [int(i) for i in np.unravel_index(at, e.shape)]
    text = f"element {place} should be {e.flat[at]:.7g}, is {a.flat[at]:.7g} (rtol {test.rtol:g}, atol {test.atol:g})"
    return "failed", text, worst
