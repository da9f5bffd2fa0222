"""Our calls against what vendors ship: wheels of build/vendor, read as archives and never installed."""

import ast
import os
import re
import zipfile
from pathlib import Path

import pytest

from datong.chips.load import stacks
from datong.conformance.vendor.schemas import Found, check
from datong.conformance.vendor.wheel import Wheel, read
from datong.errors import ChipError

VENDOR = Path(__file__).parents[2] / "build" / "vendor"


def wheel(pattern: str) -> Path:
    found = sorted(VENDOR.glob(pattern))
    if not found:
        text = f"no {pattern} in build/vendor: scripts/fetch-vendor-wheels downloads it"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(text)
    return found[-1]


@pytest.fixture(scope="module")
def torch_npu() -> Path:
    return wheel("torch_npu-2.13.0-*.whl")


@pytest.fixture(scope="module")
def shipped(torch_npu: Path) -> Wheel:
    return read(torch_npu)


@pytest.fixture(scope="module")
def found(torch_npu: Path) -> Found:
    return check(torch_npu)


def test_every_ascend_call_fits_the_wheel(found: Found) -> None:
    assert list(found.problems) == []
    assert (found.stack, found.version) == ("ascend", "2.13.0")
    assert list(found.without_meta) == []  # the wheel checked the shapes of all results


def test_every_bound_operator_was_called(found: Found) -> None:
    from datong.backends.torch.fused import bindings

    bound = {name for name, _ in bindings() if name.startswith("torch_npu.")}
    assert bound == set(found.calls)
    assert all(call["calls"] > 10 for call in found.calls.values())


def test_prefill_and_decode_are_different_calls(found: Found) -> None:
    forms = found.calls["torch_npu.npu_fused_infer_attention_score"]["forms"]
    assert {"atten_mask=" in form for form in forms} == {True, False}
    assert all("block_table=" in form and "actual_seq_lengths_kv=" in form for form in forms)


def damaged(tmp_path: Path, shipped: Wheel, name: str, old: str, new: str) -> Path:
    """A wheel that registers one operator in other words."""
    schemas = [
        text.replace(old, new) if key == name else text for key, texts in shipped.schemas.items() for text in texts
    ]
    path = tmp_path / "torch_npu-2.13.0-damaged.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("torch_npu-2.13.0.dist-info/METADATA", "Name: torch_npu\nVersion: 2.13.0\n")
        archive.writestr("torch_npu/lib/libtorch_npu.so", b"\0" + "\0".join(schemas).encode() + b"\0")
        archive.writestr("torch_npu/op_plugin/meta/_meta_registrations.py", shipped.meta)
    return path


@pytest.mark.parametrize(
    ("name", "op", "old", "new"),
    [
        ("npu_rms_norm", "rms_norm", "float epsilon", "float eps"),
        ("npu_fused_infer_attention_score", "attention", "Tensor? block_table", "Tensor? block_tables"),
        ("npu_swiglu", "glu", "int dim=-1", "str dim='-1'"),
        ("npu_scatter_pa_kv_cache", "attention", ", str? cache_mode='PA_NZ'", ""),
    ],
)
def test_a_changed_parameter_is_found(tmp_path: Path, shipped: Wheel, name: str, op: str, old: str, new: str) -> None:
    assert any(old in text for text in shipped.schemas[name])
    problems = check(damaged(tmp_path, shipped, name, old, new), [op]).problems
    assert any(p.startswith("ascend.toml says") and f"`{name}(" in p for p in problems)
    calls = [p for p in problems if p.startswith("ascend-")]
    assert calls and all(name in p for p in calls)


def test_an_operator_that_is_gone_is_found(tmp_path: Path, shipped: Wheel) -> None:
    path = damaged(tmp_path, shipped, "npu_rms_norm", "npu_rms_norm(", "npu_rms_norm_old(")
    problems = check(path, ["rms_norm"]).problems
    assert "ascend.toml names `torch_npu.npu_rms_norm`, which the wheel does not register" in problems
    assert "`torch_npu.npu_rms_norm` has a binding and no case calls it" in problems


def test_a_package_that_no_descriptor_names_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "torch_xyz.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("torch_xyz-1.dist-info/METADATA", "Name: torch_xyz\nVersion: 1\n")
        archive.writestr("torch_xyz/lib.so", b"\0f(Tensor x) -> Tensor\0")
    with pytest.raises(ChipError, match="a descriptor should name this package as its adapter, none does"):
        check(path)


def test_the_libraries_of_moore_threads_are_those_that_its_package_loads() -> None:
    with zipfile.ZipFile(wheel("mthreads_ml_py-2.4.3-*.whl")) as archive:
        source = ast.parse(archive.read("pymtml.py"))
    names = {
        str(element.value)
        for node in ast.walk(source)
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "lib_names"
        for element in getattr(node.value, "elts", [])
    }
    assert names == {"libmtml.so.2", "libmtml.so"}
    assert set(stacks()["moorethreads"].identity.library.value or ()) == names


def test_the_provider_of_ascend_is_the_one_that_onnxruntime_cann_brings() -> None:
    with zipfile.ZipFile(wheel("onnxruntime_cann-1.24.4-*.whl")) as archive:
        binding = next(name for name in archive.namelist() if "onnxruntime_pybind11_state" in name)
        providers = set(re.findall(rb"\0([A-Za-z]+ExecutionProvider)(?=\0)", archive.read(binding)))
    assert (stacks()["ascend"].onnx_provider.value or "").encode() in providers
