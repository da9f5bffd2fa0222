"""The suite must find what is wrong, and say of every test what came of it."""

import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from datong.backends.reference import ReferenceBackend
from datong.backends.reference.executable import ReferenceExecutable
from datong.conformance import onnx_suite_report as report
from datong.conformance.build import PartBuilder
from datong.conformance.onnx_suite import OPERATORS, NodeTest, collect, judge, run_suite, run_test
from datong.conformance.onnx_suite_direct import run_directly
from datong.conformance.onnx_suite_forms import FORMS
from datong.importer.hf import import_directory
from datong.spec.backend import No, Yes
from datong.spec.program import Node, Part, Value

DATA = Path(__file__).resolve().parents[2] / "data"


@pytest.fixture(scope="module")
def tests() -> list[NodeTest]:
    return collect()


@pytest.fixture(scope="module")
def by_name(tests) -> dict[str, NodeTest]:
    return {test.name: test for test in tests}


@pytest.fixture(scope="module")
def passed(tests) -> list[str]:
    return [r.name for r in run_suite(ReferenceBackend(), None, tests) if r.state == "passed"]


# ---- what is collected ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["internlm2", "internlm3", "llama3", "qwen2", "qwen3", "smollm2"])
def test_every_operator_of_a_package_is_in_the_suite(family):
    model = import_directory(DATA / "goldens" / family).model
    assert {node.op_type for node in model.graph} <= set(OPERATORS)


def test_every_test_of_an_operator_is_there(tests):
    """Counted anew by the names that the suite gives them."""
    from onnx.backend.test.loader import load_model_tests

    assert set(FORMS) == set(OPERATORS)
    assert {test.op for test in tests} == set(OPERATORS)
    assert len({test.name for test in tests}) == len(tests)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        named = [case.name for case in load_model_tests(kind="node")]
    for op, prefix in {"Attention": "attention", "RMSNormalization": "rms_norm", "RotaryEmbedding": "rotary"}.items():
        assert [t.name for t in tests if t.op == op] == [n for n in named if n.startswith(f"test_{prefix}")]
    names = {test.name for test in tests}
    assert all(t.name.partition("_expanded")[0] in names for t in tests if t.expanded)


def test_operands_are_known_by_the_names_of_the_schema(by_name):
    test = by_name["test_attention_4d_gqa_causal_nonpad_decode"]
    assert set(test.inputs) == {"Q", "K", "V", "nonpad_kv_seqlen"} and set(test.outputs) == {"Y"}
    assert by_name["test_matmul_1d_1d"].outputs["Y"].shape == ()
    assert by_name["test_dequantizelinear_int4"].inputs["x"].dtype.name == "int4"


# ---- what is claimed ------------------------------------------------------------------------------------------------


def test_each_test_has_a_state_and_each_that_is_not_claimed_a_reason(tests, passed):
    results = run_suite(ReferenceBackend(), None, tests)
    assert [r.name for r in results] == [t.name for t in tests]
    assert {r.state for r in results} == {"passed", "not claimed"}
    assert all(bool(r.reason) == (r.state == "not claimed") for r in results)
    assert {r.op for r in results if r.state == "passed"} == set(OPERATORS) - {
        "DequantizeLinear", "Reshape", "Sub", "Transpose", "Unsqueeze",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("test_add_bcast", "operands of `add` have one shape"),
        ("test_mul_int8", "activations are f32, the test gives int8"),
        ("test_attention_4d_attn_mask", "an explicit mask"),
        ("test_attention_4d_fp16", "the test gives float16"),
        ("test_attention_4d_with_qk_matmul", "asks for the scores"),
        ("test_attention_bidirectional_window", "a window to the right"),
        ("test_attention_local_window_with_past", "queries after the last key, under a window"),
        ("test_attention_4d_causal_nonpad_negative_offset_structural_empty", "sees no key"),
        ("test_attention_4d_expanded", "function body"),
        ("test_cast_FLOAT_to_FLOAT16", "only weights are cast"),
        ("test_gather_1", "another axis"),
        ("test_gather_negative_indices", "negative indices"),
        ("test_gemm_alpha", "alpha is 0.5"),
        ("test_gemm_transposeA", "transposed"),
        ("test_gemm_default_scalar_bias", "broadcast"),
        ("test_matmul_3d", "a batch of matrices"),
        ("test_slice_neg_steps", "steps other than 1"),
        ("test_slice_start_out_of_bounds", "keeps nothing"),
        ("test_swiglu_alpha", "alpha is 0.5"),
        ("test_sub", "subtracts the min"),
        ("test_reshape_one_dim", "no operator runs"),
    ],
)
def test_why_a_test_is_not_claimed(by_name, name, reason):
    result = run_test(ReferenceBackend(), by_name[name])
    assert result.state == "not claimed" and reason in result.reason and not result.refused


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("test_attention_4d_causal", "attention, a sequence per batch entry"),
        ("test_attention_4d_gqa_softcap", "attention, a sequence per query"),
        ("test_attention_4d_causal_nonpad_batch_prefill", "attention, a sequence per batch entry"),
        ("test_attention_local_window", "attention, a sequence per batch entry"),
        ("test_rotary_embedding", "embedding of cos and sin by position_ids, rope"),
        ("test_gemm_default_matrix_bias", "linear, add"),
    ],
)
def test_how_a_test_is_said(by_name, name, how):
    result = run_test(ReferenceBackend(), by_name[name])
    assert (result.state, result.how) == ("passed", how)


# ---- what is wrong is found -----------------------------------------------------------------------------------------


class Faulty(ReferenceBackend):
    """The reference whose last output element is off by a hundredth."""

    def compile(self, part: Part, package: str, options: Mapping[str, str]) -> ReferenceExecutable:
        executable = super().compile(part, package, options)
        run = executable.run

        def wrong(step, cache, inputs):
            outputs = {name: array.copy() for name, array in run(step, cache, inputs).items()}
            for array in outputs.values():
                finite = np.flatnonzero(np.isfinite(array))
                if finite.size:
                    array.flat[finite[-1]] = array.flat[finite[-1]] * 1.01 + 0.01
            return outputs

        executable.run = wrong  # type: ignore[method-assign]
        return executable


def test_a_fault_fails_every_test_that_passed(tests, passed):
    results = run_suite(Faulty(), None, tests)
    assert [r.name for r in results if r.state == "failed"] == passed
    assert len(passed) > 80


class Wide(ReferenceBackend):
    """A backend whose attention forgets the window, the softcap and the scale: attributes must be under test."""

    def compile(self, part: Part, package: str, options: Mapping[str, str]) -> ReferenceExecutable:
        nodes = tuple(
            replace(n, attrs={**n.attrs, "window": 0, "softcap": 0.0, "scale": 1.5 * n.attrs["scale"]})
            if n.op == "attention"
            else n
            for n in part.nodes
        )
        caches = tuple(replace(c, window=0, kind="full") for c in part.caches)
        return super().compile(replace(part, nodes=nodes, caches=caches), package, options)


def test_attributes_of_attention_are_under_test(tests, passed):
    results = run_suite(Wide(), None, [t for t in tests if t.op == "Attention" and t.name in passed])
    # its keys are all alike, and so are its values: no scale changes the result
    assert {r.name for r in results if r.state == "passed"} == {"test_attention_3d_transpose_verification"}
    assert len(results) == 32


def test_a_refusal_of_the_backend_is_told_from_one_of_the_operator_set(by_name):
    class Picky(ReferenceBackend):
        def supports(self, node: Node, values: Mapping[str, Value]) -> Yes | No:
            return No("no sine in this chip") if node.op == "rope_table" else super().supports(node, values)

    result = run_test(Picky(), by_name["test_cos"])
    assert (result.state, result.reason, result.refused) == ("not claimed", "no sine in this chip", True)


def test_an_exception_of_the_backend_is_a_failure(by_name):
    result = run_test(ReferenceBackend(), by_name["test_matmul_2d"], {"cache_dtype": "i4"})
    assert result.state == "failed" and "cache_dtype should be" in result.reason


@pytest.mark.parametrize(
    ("actual", "expected", "state"),
    [
        ([1.0009], [1.0], "passed"),
        ([1.0011], [1.0], "failed"),
        ([2e-7], [1e-7], "passed"),
        ([3e-7], [1e-7], "failed"),
        ([np.nan], [np.nan], "passed"),
        ([np.nan], [1.0], "failed"),
        ([1.0], [np.nan], "failed"),
        ([np.inf], [np.inf], "passed"),
        ([3e38], [np.inf], "failed"),
        ([-np.inf], [np.inf], "failed"),
        ([[1.0]], [1.0], "failed"),
    ],
)
def test_the_verdict_is_that_of_the_suite(by_name, actual, expected, state):
    a, e = np.array(actual, np.float32), np.array(expected, np.float32)
    test = by_name["test_add"]
    assert judge(test, a, e)[0] == state
    if a.shape == e.shape:
        try:
            np.testing.assert_allclose(a, e, test.rtol, test.atol)
            assert state == "passed"
        except AssertionError:
            assert state == "failed"
    assert judge(test, a.astype(np.float64), e)[0] == "failed"


# ---- the tests' own graphs, and the report --------------------------------------------------------------------------


def test_every_claimed_test_passes_in_onnx_runtime_too(tests, passed):
    """So that a difference of ours would not be a fault of the test; Swish has no kernel there at opset 28."""
    from datong.backends.onnxruntime.providers import find

    results = run_directly(find("onnxruntime"), [t for t in tests if t.name in passed])
    assert [r.name for r in results if r.state == "failed"] == []
    assert {r.op for r in results if r.state == "not claimed"} <= {"SwiGLU", "Cast"}


def test_a_provider_that_takes_nothing_claims_nothing(by_name):
    from datong.backends.onnxruntime.providers import find

    (result,) = run_directly(find("onnxruntime:AzureExecutionProvider"), [by_name["test_add"]])
    assert (result.state, result.reason) == ("not claimed", "ONNX Runtime puts it on CPUExecutionProvider")


def test_the_page_can_be_read_back_and_names_every_test(tests):
    results = run_suite(ReferenceBackend(), None, tests)
    page = report.markdown({"reference": ("measured", results), "chip": ("simulated", results[:50])})
    cells = report.cells(page)
    assert set(cells) == {"reference", "chip"} and set(cells["chip"]) == {*OPERATORS, report.TOTAL}
    assert cells["reference"]["MatMul"] == "3 / 3 / 4"
    assert cells["reference"][report.TOTAL] == report.cell(results)
    assert all(f"`{test.name.removeprefix('test_')}`" in page for test in tests)
    assert "| *evidence* |  | measured | simulated |" in page


def test_summary_and_table_say_what_came_out(tests):
    results = run_suite(Faulty(), None, [t for t in tests if t.op in ("MatMul", "Sub")])
    facts = report.summary(results, ReferenceBackend())
    assert facts["operators"]["MatMul"] == {"executed": 3, "passed": 0, "failed": 3, "not claimed": 4}
    assert facts["total"]["executed"] == 3 and facts["onnx"] == onnx.__version__
    assert [f["test"] for f in facts["failures"]] == ["test_matmul_2d", "test_matmul_4d_1d", "test_matmul_1d_1d"]
    assert report.table(results, ReferenceBackend()).row_count == len(OPERATORS)


def test_a_stored_weight_is_the_array(tests):
    with PartBuilder(0) as builder:
        array = np.arange(6, dtype=np.float16).reshape(2, 3)
        builder.stored("w", array)
        assert builder.values["w"].format == "f16" and np.array_equal(builder.arrays["w"], array.astype(np.float32))
