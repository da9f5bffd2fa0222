"""NaN and infinities in weights are found, wherever they lie and whatever float type they have."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from datong.dtypes import BY_NAME
from datong.package import graph
from datong.package.create import import_checkpoint
from datong.package.finite import NO_NUMBER
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


@pytest.mark.parametrize("name", NO_NUMBER)
def test_every_code_is_told_apart(name: str) -> None:
    """All bits of 8 and 16, of 32 the upper half: as NumPy and ml_dtypes read them."""
    unsigned, ones = NO_NUMBER[name]
    size = np.dtype(unsigned).itemsize
    bits = np.arange(1 << min(8 * size, 16), dtype=unsigned) << (16 if size == 4 else 0)
    values = bits.astype(unsigned).view(BY_NAME[name].numpy).astype(np.float32)
    assert np.array_equal((bits & ones) == ones, ~np.isfinite(values))


GOLDENS = Path(__file__).parents[2] / "data" / "goldens"


@pytest.mark.parametrize(
    ("family", "tensor", "code"),
    [
        ("minimax_m2_fp8", "model.layers.1.block_sparse_moe.experts.3.w2.weight", b"\xff"),
        ("minimax_m2_fp8", "model.layers.0.self_attn.q_proj.weight_scale_inv", b"\0\0\x80\x7f"),
        ("step3p5", "model.layers.5.eh_proj.weight", b"\0\0\xc0\x7f"),
    ],
)
def test_codes_scales_and_heads_are_read(family: str, tensor: str, code: bytes, tmp_path: Path) -> None:
    shutil.copytree(GOLDENS / family, tmp_path / "m", ignore=shutil.ignore_patterns("golden*"))
    package = import_checkpoint(tmp_path / "m")
    path = package.root / "model.safetensors"
    data = bytearray(path.read_bytes())
    length = int.from_bytes(data[:8], "little")
    begin = 8 + length + json.loads(data[8 : 8 + length])[tensor]["data_offsets"][0]
    data[begin : begin + len(code)] = code
    path.write_bytes(data)
    status, reason = finite(verify(package.root, deep=True))
    assert status == "failed" and f"`{tensor}`" in reason
