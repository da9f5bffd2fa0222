import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import msgspec
import pytest

from datong.backends import torch as family
from datong.backends.torch import target as targets
from datong.backends.torch.target import chip_target, cpu_target, open_target, require, require_build, target_for
from datong.chips.load import Chip, find
from datong.chips.schema import Fact
from datong.errors import BackendMissing


def changed(name: str, **facts: object) -> Chip:
    """A chip whose generation has other facts."""
    chip = find(name)
    fresh = {key: Fact(grade="A", value=value, source="test") for key, value in facts.items()}
    return Chip(chip.stack, msgspec.structs.replace(chip.generation, **fresh))


def test_names() -> None:
    assert target_for("torch:cpu").device == "cpu"
    assert target_for("torch:cuda").device == "cuda:0" and target_for("torch:cuda:2").device == "cuda:2"
    assert target_for("ascend:3").device == "npu:3" and target_for("ascend").name == "ascend"
    assert target_for("biren-br1xx:1").device == "supa:1"


@pytest.mark.parametrize("name", ["torch", "torch:", "torch:tpu", "torch:cuda:x", "metax:x", "metax:-1", "torch:cpu:1"])
def test_names_that_mean_nothing(name: str) -> None:
    with pytest.raises(BackendMissing, match=r"should be"):
        target_for(name)


def test_facts_become_the_target() -> None:
    facts = {"kv_block_sizes": [128, 64], "kv_layout": "hnd", "dtypes": ["f32", "f16"], "gated_dtypes": ["i64"]}
    target = chip_target("x", changed("ascend-910b", **facts))
    assert (target.block_size, target.layout, target.index_dtype) == (128, "hnd", "i32")
    assert target.floats == ("f32", "f16") and not target.is_legal("bf16") and target.evidence == "not run"
    assert chip_target("x", changed("ascend-910b", illegal_dtypes=["f16"])).is_legal("f16") is False


def test_only_graded_facts_decide() -> None:
    chip = find("ascend-910b")
    rumour = Fact(grade="C", value=[7], source="press")
    blocks = msgspec.structs.replace(chip.generation, kv_block_sizes=rumour)
    assert chip_target("x", Chip(chip.stack, blocks)).block_size == targets.DEFAULT_BLOCK


def test_a_chip_without_adapter() -> None:
    chip = find("ascend")
    adapter = msgspec.structs.replace(chip.stack.adapter, device=Fact(grade="unknown"))
    with pytest.raises(BackendMissing, match="should have a PyTorch adapter"):
        chip_target("x", Chip(msgspec.structs.replace(chip.stack, adapter=adapter), chip.generation))


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackendMissing, match="no module `torch_npu`") as caught:
        require(target_for("ascend"))
    assert "datong doctor" in str(caught.value)
    monkeypatch.setattr(targets, "installed", lambda module: False)
    with pytest.raises(BackendMissing, match="no module `torch`") as caught:
        family.create("torch:cpu")
    assert "datong[torch]" in str(caught.value)
    assert family.present() == []


def test_an_adapter_that_does_not_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torch_npu.py").write_text("raise ImportError('libascendcl.so: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(BackendMissing, match=r"`torch-npu` should load, got: libascendcl\.so"):
        open_target(target_for("ascend"))


def test_a_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    adapter = ModuleType("torch_npu")
    monkeypatch.setitem(sys.modules, "torch_npu", adapter)
    monkeypatch.setattr(torch, "npu", SimpleNamespace(device_count=lambda: 1), raising=False)
    with pytest.raises(BackendMissing, match=r"device 1 of `torch\.npu` should be there, .* sees 1"):
        open_target(target_for("ascend:1"))


def test_anothers_build_of_torch_is_not_the_vendors() -> None:
    with pytest.raises(BackendMissing, match=r"a version with `\+metax`, it is"):
        require_build(target_for("metax:0"))
    require_build(cpu_target())


def test_present_is_cheap_and_says_measured() -> None:
    (info,) = family.present()
    assert (info.name, info.evidence) == ("torch:cpu", "measured") and info.memory_bytes > 0


@pytest.mark.parametrize(("version", "fits"), [("2.13.0+cpu", True), ("2.5", True), ("2.4.1", False), ("1.13", False)])
def test_an_old_pytorch_is_named(monkeypatch: pytest.MonkeyPatch, version: str, fits: bool) -> None:
    monkeypatch.setattr(targets.metadata, "version", lambda name: version)
    if fits:
        return require(cpu_target())
    with pytest.raises(BackendMissing, match=r"should be 2\.5 or newer, it is " + version):
        require(cpu_target())
