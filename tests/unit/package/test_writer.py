"""Writing packages: in place, into a directory, from pending tensors; the same bytes each time, or nothing."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from datong import dtypes
from datong.errors import CheckpointError, IntegrityError, PackageError
from datong.importer import layout
from datong.importer.hf import import_directory
from datong.importer.imported import Imported, PendingTensor
from datong.importer.weights import StoredTensor, Weight, WeightMap
from datong.package import writer
from datong.package.create import import_checkpoint
from datong.package.reader import open_package
from datong.package.seal import seal
from datong.spec.formats import PLAIN_F32

ROOT = Path(writer.__file__).resolve().parents[2]


def contents(directory: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(directory.iterdir())}


# ── in place ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_in_place_adds_two_files_and_touches_nothing_else(checkpoint: Path) -> None:
    before = contents(checkpoint)
    assert import_checkpoint(checkpoint).root == checkpoint.absolute()
    after = contents(checkpoint)
    assert sorted(set(after) - set(before)) == ["datong.json", "graph.onnx"]
    assert {name: after[name] for name in before} == before


def test_the_same_checkpoint_gives_the_same_bytes_in_another_process(checkpoint: Path, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere" / "tiny"
    shutil.copytree(checkpoint, other)
    import_checkpoint(checkpoint)
    code = f"from datong.package.create import import_checkpoint; import_checkpoint({str(other)!r})"
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "17"}
    subprocess.run([sys.executable, "-c", code], check=True, env=env, timeout=60)
    assert contents(checkpoint) == contents(other)


def test_an_import_of_the_same_again_changes_nothing(checkpoint: Path) -> None:
    package = import_checkpoint(checkpoint)
    sealed = seal(package)
    stamp = (checkpoint / "datong.json").stat().st_mtime_ns
    again = import_checkpoint(checkpoint)
    assert again.manifest == sealed.manifest
    assert (checkpoint / "datong.json").stat().st_mtime_ns == stamp


def test_hashing_later_upgrades_the_package(checkpoint: Path) -> None:
    assert import_checkpoint(checkpoint).manifest.file("model.safetensors").sha256 is None
    hashed = import_checkpoint(checkpoint, hash=True).manifest.file("model.safetensors").sha256
    assert hashed == contents(checkpoint)["model.safetensors"]
    assert import_checkpoint(checkpoint).manifest.file("model.safetensors").sha256 == hashed


def test_another_package_is_not_overwritten_without_force(checkpoint: Path) -> None:
    import_checkpoint(checkpoint)
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-6}))
    before = contents(checkpoint)
    with pytest.raises(PackageError, match=r"already holds another package") as e:
        import_checkpoint(checkpoint)
    assert e.value.hint is not None and "--force" in e.value.hint
    assert contents(checkpoint) == before
    import_checkpoint(checkpoint, force=True)
    assert open_package(checkpoint).manifest.file("config.json").sha256 == contents(checkpoint)["config.json"]


def test_a_foreign_graph_is_not_overwritten_without_force(checkpoint: Path) -> None:
    (checkpoint / "graph.onnx").write_bytes(b"mine")
    with pytest.raises(PackageError, match=r"already holds another package or graph"):
        import_checkpoint(checkpoint)
    assert (checkpoint / "graph.onnx").read_bytes() == b"mine"
    assert not (checkpoint / "datong.json").exists()


FULL = """
import resource, sys
from datong.package.create import import_checkpoint
from datong.errors import PackageError
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
try:
    import_checkpoint(*sys.argv[2:])
except PackageError as e:
    print(e)
"""


@pytest.mark.parametrize("limit", [0, 8_000])
def test_a_full_disk_during_an_import_leaves_nothing(checkpoint: Path, tmp_path: Path, limit: int) -> None:
    before = contents(checkpoint)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    for arguments in ([str(checkpoint)], [str(checkpoint), str(tmp_path / "new")]):
        command = [sys.executable, "-c", FULL, str(limit), *arguments]
        result = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
        assert "there is no space left for it" in result.stdout, result.stdout + result.stderr
        assert "hint: " in result.stdout
    assert contents(checkpoint) == before
    assert [p.name for p in tmp_path.iterdir()] == ["tiny"]


# ── into a directory ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_copy_is_complete_hashed_and_equal_to_the_package_in_place(checkpoint: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    copy = import_checkpoint(checkpoint, tmp_path / "copy", progress=lambda *call: seen.append(call))
    assert sorted(contents(checkpoint)) == ["config.json", "model.safetensors"]
    assert [f.sha256 for f in copy.manifest.files] == [contents(copy.root)[f.path] for f in copy.manifest.files]
    assert ("copying model.safetensors", 331024, 331024) in seen
    here = import_checkpoint(checkpoint)
    assert contents(here.root)["graph.onnx"] == contents(copy.root)["graph.onnx"]
    assert here.manifest.weights == copy.manifest.weights


def test_a_directory_with_other_files_is_never_replaced(checkpoint: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.txt").write_text("years of work")
    for force in (False, True):
        with pytest.raises(PackageError, match=r"holds other files and no package"):
            import_checkpoint(checkpoint, home, force=force)
    assert [p.name for p in home.iterdir()] == ["thesis.txt"]
    (tmp_path / "file").write_text("x")
    with pytest.raises(PackageError, match=r"should be a directory or not exist, it is a file"):
        import_checkpoint(checkpoint, tmp_path / "file", force=True)


def test_a_directory_with_a_package(checkpoint: Path, tmp_path: Path) -> None:
    first = import_checkpoint(checkpoint, tmp_path / "p")
    assert import_checkpoint(checkpoint, tmp_path / "p").fingerprint == first.fingerprint
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-6}))
    with pytest.raises(PackageError, match=r"already holds another package"):
        import_checkpoint(checkpoint, tmp_path / "p")
    assert open_package(tmp_path / "p").fingerprint == first.fingerprint
    assert import_checkpoint(checkpoint, tmp_path / "p", force=True).fingerprint != first.fingerprint
    assert sorted(p.name for p in tmp_path.iterdir()) == ["p", "tiny"]


def test_other_weights_of_the_same_shape_are_another_package(checkpoint: Path, tmp_path: Path) -> None:
    import_checkpoint(checkpoint, tmp_path / "p")
    with open(checkpoint / "model.safetensors", "r+b") as f:
        f.seek(-4, os.SEEK_END)
        f.write(b"\0\0\0\0")
    with pytest.raises(PackageError, match=r"already holds another package"):
        import_checkpoint(checkpoint, tmp_path / "p")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["p", "tiny"]


def test_a_disk_that_is_too_small_is_noticed_first(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(PackageError, match=r"needs 67440.* bytes, its disk has 1000 free"):
        import_checkpoint(checkpoint, tmp_path / "new")
    assert not (tmp_path / "new").exists()


# ── pending tensors ──────────────────────────────────────────────────────────────────────────────────────────────────


def pending(name: str, values: np.ndarray) -> PendingTensor:
    def read() -> Iterator[bytes]:
        yield values.tobytes()[:5]
        yield values.tobytes()[5:]

    return PendingTensor(name, dtypes.F32, values.shape, values.nbytes, read)


def imported(*, shift: int = 0, **changes: Any) -> Imported:
    """y = x @ w, with w [2, 4] pending."""
    tensors = (pending("w", np.arange(8, dtype=np.float32).reshape(2, 4)),)
    offset = layout.offsets(tensors)["w"] + shift
    stored = StoredTensor("w", dtypes.F32, (2, 4), "model.safetensors", offset, 32)
    weights = WeightMap({"w": Weight("w", PLAIN_F32, (2, 4), {"codes": stored})})
    weights.take("w", (2, 4))
    place = ir.ExternalTensor("model.safetensors", offset, 32, ir.DataType.FLOAT, shape=ir.Shape((2, 4)), name="w")
    kind = ir.TensorType(ir.DataType.FLOAT)
    w = ir.Value(name="w", type=kind, shape=ir.Shape((2, 4)), const_value=place)
    x = ir.Value(name="x", type=kind, shape=ir.Shape(("n", 2)))
    node = ir.Node("", "MatMul", [x, w], num_outputs=1)
    y = node.outputs[0]
    y.name, y.type, y.shape = "y", kind, ir.Shape(("n", 4))
    graph = ir.Graph([x], [y], nodes=[node], initializers=[w], opset_imports={"": 27}, name="g")
    fields: dict[str, Any] = {
        "model": ir.Model(graph, ir_version=13), "family": "none", "name": "n", "source": "/home/someone/n.gguf",
        "licence": None, "config": {}, "weights": weights, "caches": (), "vocab_size": 8, "context_length": 4,
        "generated": {"config.json": b"{}"}, "tensors": tensors,
    }  # fmt: skip
    return Imported(**{**fields, **changes})


def test_pending_tensors_are_streamed_to_where_the_graph_says(tmp_path: Path) -> None:
    package = open_package(writer.write_directory(imported(), tmp_path / "p"))
    assert np.array_equal(package.tensor("w"), np.arange(8).reshape(2, 4))
    values = package.graph().graph.initializers["w"].const_value
    assert values is not None and np.array_equal(values.numpy(), package.tensor("w"))
    assert package.manifest.model.source == "n.gguf", "no path of the importing machine"
    assert package.manifest.file("model.safetensors").sha256 == contents(package.root)["model.safetensors"]


def test_the_writer_catches_an_importer_that_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match=r"initializer `w` should be bytes"):
        writer.write_directory(imported(shift=4), tmp_path / "p")
    short = PendingTensor("w", dtypes.F32, (2, 4), 32, lambda: iter((b"1234",)))
    with pytest.raises(PackageError, match=r"tensor `w` should have 32 bytes, its source gave 4"):
        writer.write_directory(imported(tensors=(short,)), tmp_path / "p")
    unused = imported()
    unused.weights.taken.clear()
    with pytest.raises(CheckpointError, match=r"every tensor must be used or ignored with a reason"):
        writer.write_directory(unused, tmp_path / "p")
    with pytest.raises(PackageError, match=r"weights of another format need a directory of their own"):
        writer.write_in_place(imported(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_in_the_middle_of_a_tensor_leaves_nothing(tmp_path: Path) -> None:
    def read() -> Iterator[bytes]:
        yield b"1234"
        raise CheckpointError("n.gguf", "the file ends in the middle of tensor `w`")

    broken = PendingTensor("w", dtypes.F32, (2, 4), 32, read)
    with pytest.raises(CheckpointError):
        writer.write_directory(imported(tensors=(broken,)), tmp_path / "p")
    assert list(tmp_path.iterdir()) == []


def test_import_directory_itself_writes_nothing(checkpoint: Path) -> None:
    before = contents(checkpoint)
    import_directory(checkpoint)
    assert contents(checkpoint) == before
