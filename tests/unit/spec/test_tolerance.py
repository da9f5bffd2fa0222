"""The comparison must be able to fail: it is fed wrong answers here."""

import numpy as np
import pytest

from datong.spec import formats
from datong.spec.ops import OPS
from datong.spec.tolerance import TABLE, bound_for, compare


def good(n: int = 1000) -> np.ndarray:
    return np.random.default_rng(3).standard_normal((10, n // 10)).astype(np.float32)


def test_every_class_of_ops_has_a_bound_with_a_reason() -> None:
    for op in OPS.values():
        fmts = {"linear": list(formats.BY_NAME), "attention": ["f32", "f16", "bf16"]}.get(op.tolerance, [""])
        assert all(bound_for(op.tolerance, fmt).reason for fmt in fmts)


@pytest.mark.parametrize("row", TABLE, ids=str)
def test_equal_arrays_pass(row: tuple[str, str]) -> None:
    report = compare(good(), good(), *row)
    assert report
    assert (report.nmse, report.worst) == (0.0, 0.0)


@pytest.mark.parametrize("row", TABLE, ids=str)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 0.0, 100.0])
def test_one_bad_element_fails(row: tuple[str, str], bad: float) -> None:
    wrong = good()
    wrong[7, 3] = bad if bad != 0.0 else -wrong[7, 3] - 1
    report = compare(wrong, good(), *row)
    assert not report
    assert "[7, 3]" in report.reason or "nmse" in report.reason


@pytest.mark.parametrize("size", [100, 100_000])
def test_one_bad_element_is_not_diluted_by_size(size: int) -> None:
    wrong = good(size)
    wrong[0, 0] += 0.01
    assert not compare(wrong, good(size), "f32")


@pytest.mark.parametrize("row", TABLE, ids=str)
@pytest.mark.parametrize("wrong", [np.zeros_like(good()), -good(), good()[::-1].copy(), good() * np.float32(1.5)])
def test_wrong_arrays_fail(row: tuple[str, str], wrong: np.ndarray) -> None:
    assert not compare(wrong, good(), *row)


def test_shape_and_dtype_fail() -> None:
    assert "shape should be [10, 100], is [100, 10]" in compare(good().T, good(), "f32").reason
    assert "shape" in compare(good()[:1], good(), "f32").reason  # would broadcast
    assert "dtype should be float32, is float64" in compare(good().astype(np.float64), good(), "f32").reason


def test_a_small_change_fails_exact_and_passes_f32() -> None:
    near = np.nextafter(good(), np.float32(np.inf))
    assert not compare(near, good(), "exact")
    assert compare(near, good(), "f32")


def test_a_small_error_everywhere_fails_by_nmse() -> None:
    assert "nmse" in compare(good() * np.float32(1 + 5e-5), good(), "f32").reason


def test_expected_nan_and_infinity_must_come_back() -> None:
    special = np.array([np.nan, np.inf, -np.inf, -0.0, 1.0], np.float32)
    assert compare(special.copy(), special, "exact")
    for i, wrong in ((0, 1.0), (0, np.inf), (1, -np.inf), (1, np.nan), (2, 3e38), (4, np.nan)):
        bad = special.copy()
        bad[i] = wrong
        assert f"element [{i}]" in compare(bad, special, "exact").reason


def test_zeros_are_compared_absolutely() -> None:
    zeros = np.zeros(4, np.float32)
    assert compare(zeros, zeros, "f32")
    assert not compare(np.full(4, 1e-30, np.float32), zeros, "f32")


def test_magnitude_excuses_cancellation_and_nothing_else() -> None:
    expected, off = np.array([1e-6], np.float32), np.array([1.1e-6], np.float32)
    assert not compare(off, expected, "linear", "f32")
    assert compare(off, expected, "linear", "f32", magnitude=np.array([1.0]))
    assert not compare(np.array([1e-3], np.float32), expected, "linear", "f32", magnitude=np.array([1.0]))


def test_integers_are_equal_or_wrong() -> None:
    assert compare(np.arange(3), np.arange(3), "exact")
    assert not compare(np.arange(3) + 1, np.arange(3), "f32")


def test_empty_arrays_are_equal() -> None:
    assert compare(np.zeros((0, 5), np.float32), np.zeros((0, 5), np.float32), "f32")
