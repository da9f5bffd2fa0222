"""A wheel of a few bytes: what is read out of it, and that a call which does not fit is found."""

import zipfile
from pathlib import Path

import pytest

from datong.chips.load import stacks
from datong.conformance.vendor.schemas import check, facts, text
from datong.conformance.vendor.wheel import read
from datong.errors import ChipError

META = """
import torch
import torch_npu
from torch.library import Library, impl
from torch_npu.utils._error_code import ErrCode, ops_error

m = Library("npu", "IMPL", "Meta")
OTHER = Library("aten", "IMPL", "Meta")

@impl(m, "npu_rms_norm")
def npu_rms_norm_meta(self, gamma, epsilon=1e-6):
    return torch.empty_like(self), torch.empty(1, device="meta")

@impl(OTHER, "npu_swiglu")
def not_ours(x):
    raise AssertionError
"""
SCHEMAS = [f.schema for f in stacks()["ascend"].fused if f.name.startswith("torch_npu.") and f.schema]


def wheel(directory: Path, schemas: list[str], meta: str = META, name: str = "torch_npu") -> Path:
    path = directory / f"{name}-9.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}-9.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 9\n")
        library = "\0".join(["GCC: (GNU)", *schemas, "acl_op::f(self)", "g(SymIntArrayRef a) -> Tensor"])
        archive.writestr(f"{name}/lib/lib{name}.so", b"\x7fELF\0" + library.encode() + b"\0\xff\xfe\0")
        archive.writestr(f"{name}/op_plugin/meta/_meta_registrations.py", meta)
    return path


def test_schemas_are_read_between_zero_bytes(tmp_path: Path) -> None:
    found = read(wheel(tmp_path, ["f(Tensor x) -> Tensor", "f.out(Tensor x, *, Tensor(a!) out) -> Tensor(a!)"]))
    assert (found.package, found.version) == ("torch-npu", "9")
    assert found.schemas["f"] == ("f(Tensor x) -> Tensor",)
    assert found.schemas["f.out"] == ("f.out(Tensor x, *, Tensor(a!) out) -> Tensor(a!)",)
    assert set(found.schemas) == {"f", "f.out", "g"}
    assert "npu_rms_norm_meta" in found.meta


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "should be a zip archive that can be read"),
        (b"no archive", "should be a zip archive that can be read"),
        ({}, "should have a METADATA file"),
        ({"a.dist-info/METADATA": "Name: a\n"}, "should have a library that registers operators"),
    ],
)
def test_what_is_no_wheel_is_refused(tmp_path: Path, content: bytes | dict[str, str] | None, sentence: str) -> None:
    path = tmp_path / "x.whl"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        with zipfile.ZipFile(path, "w") as archive:
            for name, member in content.items():
                archive.writestr(name, member)
    with pytest.raises(ChipError, match=sentence):
        read(path)


def test_calls_that_fit_are_counted(tmp_path: Path) -> None:
    found = check(wheel(tmp_path, SCHEMAS), ["rms_norm"])
    assert list(found.problems) == []
    call = found.calls["torch_npu.npu_rms_norm"]
    assert call["calls"] > 10 and call["forms"] == [["input", "gamma", "epsilon="]]
    assert set(found.calls) == {"torch_npu.npu_rms_norm"}  # only what was asked for
    assert facts(found)["failures"] == [] and text(found).endswith("every call fits")


def test_a_renamed_parameter_is_found_and_a_missing_meta_function_told(tmp_path: Path) -> None:
    renamed = [schema.replace("float epsilon", "float eps") for schema in SCHEMAS]
    found = check(wheel(tmp_path, renamed, meta=""), ["rms_norm"])
    assert any("Unknown keyword argument 'epsilon'" in problem for problem in found.problems)
    assert any(problem.startswith("ascend.toml says `npu_rms_norm(") for problem in found.problems)
    assert list(found.without_meta) == ["torch_npu.npu_rms_norm"]
    assert "do not fit" in text(found) and "the wheel has no meta function" in text(found)


def test_results_of_another_shape_are_found(tmp_path: Path) -> None:
    narrow = META.replace("torch.empty_like(self),", "torch.empty((*self.shape[:-1], 1), device='meta'),")
    found = check(wheel(tmp_path, SCHEMAS, narrow), ["rms_norm"])
    assert found.problems and all(p.startswith("ascend-") and "rms_norm" in p for p in found.problems)
