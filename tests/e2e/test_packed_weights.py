"""Matrices packed for the kernels: kept in a file, made again if it does not fit, in memory without a file."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

import datong
from datong.errors import DatongError
from datong.package.store import resolve

IDS = list(np.random.default_rng(5).integers(100, 40000, 21))
CPU = Path("/proc/cpuinfo")
pytestmark = [
    pytest.mark.smollm2,
    pytest.mark.skipif(
        not CPU.exists() or "avx512_vnni" not in CPU.read_text() or "DATONG_ISA" in os.environ,
        reason="only the AVX-512 VNNI kernels have a layout of their own",
    ),
]


def logits(directory: Path, **options: object) -> np.ndarray:
    return datong.load("smollm2", context=64, pack_directory=directory, **options).logits(IDS)


def only(directory: Path) -> Path:
    (found,) = directory.iterdir()
    return found


def test_packed_kept_in_memory_and_as_stored_are_the_same_bits(tmp_path: Path) -> None:
    made = logits(tmp_path / "packed")
    assert only(tmp_path / "packed").stat().st_size > 80e6
    kept = logits(tmp_path / "packed")
    (tmp_path / "file").touch()
    in_memory = datong.load("smollm2", context=64, pack_directory=tmp_path / "file")
    assert in_memory.memory()["weights_private"] > 80e6
    stored = datong.load("smollm2", context=64, weights="mapped")
    assert stored.memory()["weights_private"] < 1e6
    for other in (kept, in_memory.logits(IDS), stored.logits(IDS)):
        assert np.array_equal(made.view(np.int32), other.view(np.int32))


@pytest.mark.parametrize("damage", ["short", "foreign", "empty"])
def test_a_file_that_does_not_fit_is_made_again(tmp_path: Path, damage: str) -> None:
    wanted = logits(tmp_path)
    path = only(tmp_path)
    content = path.read_bytes()
    path.write_bytes({"short": content[:-1], "foreign": b"x" + content[1:], "empty": b""}[damage])
    assert np.array_equal(wanted, logits(tmp_path))
    assert only(tmp_path).read_bytes() == content


def test_files_of_weights_that_changed_are_removed(tmp_path: Path) -> None:
    package = tmp_path / "model"
    shutil.copytree(resolve("smollm2").root, package, symlinks=False)
    packed = tmp_path / "packed"
    datong.load(package, context=64, pack_directory=packed)
    before = only(packed)
    weights = next(package.rglob("*.safetensors"))
    os.utime(weights, ns=(1, 1))
    datong.load(package, context=64, pack_directory=packed)
    assert only(packed) != before


def test_an_unknown_layout_is_refused_in_one_sentence() -> None:
    with pytest.raises(DatongError, match="option weights is packed or mapped, `sideways` came"):
        datong.load("smollm2", context=64, weights="sideways")
