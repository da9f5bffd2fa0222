"""NaN and infinities in weights are found, wherever they lie and whatever float type they have."""

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from datong.package import graph
from datong.package.manifest import GRAPH
from datong.package.reader import MAX_GRAPH, Package
from datong.package.verify import Report, verify


def finite(report: Report) -> tuple[str, str]:
    [check] = [c for c in report.checks if c.name == "finite"]
    return check.status, check.reason


def float_weight(package: Package) -> graph.External:
    found = graph.externals(graph.parse(package.read(GRAPH, MAX_GRAPH), GRAPH), GRAPH)
    return next(one for one in found if len(one.shape) == 2)


def put(package: Package, at: tuple[int, ...], value: float) -> graph.External:
    one = float_weight(package)
    path = Path(package.path(one.file))
    data = bytearray(path.read_bytes())
    size = one.dtype.bits // 8
    begin = one.offset + int(np.ravel_multi_index(at, one.shape)) * size
    data[begin : begin + size] = np.array(value, one.dtype.numpy).tobytes()
    path.write_bytes(data)
    return one


def test_good_weights(package: Package) -> None:
    status, reason = finite(verify(package, deep=True))
    assert status == "ok" and "initializers" in reason


def test_only_when_asked(package: Package) -> None:
    put(package, (1, 3), np.nan)
    report = verify(package.root)
    assert report.ok and not [c for c in report.checks if c.name == "finite"]


@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
def test_the_initializer_and_the_index_are_named(
    package: Package, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datong.package.finite.CHUNK", 16)  # so that the value lies in a later piece
    one = put(package, (1, 3), value)
    status, reason = finite(verify(package.root, deep=True))
    assert status == "failed"
    assert f"`{one.name}`" in reason and "first at [1, 3]" in reason and "1 of its" in reason


@pytest.mark.parametrize("stored", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_the_largest_numbers_are_numbers(package: Package, stored: type) -> None:
    from datong.package import finite as module

    name = {4: "f32"}.get(np.dtype(stored).itemsize, "f16" if stored is np.float16 else "bf16")
    unsigned, exponent = module.EXPONENT[name]
    largest = ml_dtypes.finfo(stored).max
    values = np.array([0, -largest, largest, np.inf, np.nan, ml_dtypes.finfo(stored).smallest_subnormal], stored)
    bits = values.view(unsigned)
    assert ((bits & exponent) == exponent).tolist() == [False, False, False, True, True, False]
