"""The plan cache on a real package: a golden checkpoint, imported here."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from datong.backends.reference.backend import ReferenceBackend
from datong.compiler import cache, pipeline
from datong.errors import IntegrityError, PackageError
from datong.package.create import import_checkpoint
from datong.package.reader import open_package

GOLDEN = Path(__file__).resolve().parents[2] / "data" / "goldens" / "smollm2"
REFERENCE = [ReferenceBackend()]


@pytest.fixture
def package(tmp_path, monkeypatch):
    monkeypatch.setenv("DATONG_CACHE", str(tmp_path / "cache"))
    return import_checkpoint(shutil.copytree(GOLDEN, tmp_path / "model"))


def plans(package):
    return sorted((package.root.parent / "cache" / "plans").glob("*"))


def test_second_time_nothing_is_compiled(package, monkeypatch):
    first = cache.cached_program(package, REFERENCE)
    assert len(plans(package)) == 1
    monkeypatch.setattr(pipeline, "compile_package", lambda *_, **__: pytest.fail("compiled again"))
    assert cache.cached_program(package, REFERENCE) == first
    assert first.context_length == package.manifest.context_length > 0


def test_the_key_covers_what_changes_the_plan(package):
    paths = {
        cache.plan_path(package, backends, strict=strict, fuse=fuse)
        for backends in (REFERENCE, [ReferenceBackend.with_fusions()], REFERENCE * 2)
        for strict in (False, True)
        for fuse in (False, True)
    }
    assert len(paths) == 12
    rows = {cache.plan_path(package, REFERENCE * 2, splits=s, strict=False, fuse=True) for s in ((), (1,), (2,))}
    assert len(rows) == 3 and len(rows & paths) == 1
    before = cache.plan_path(package, REFERENCE, strict=False, fuse=True)
    with open(package.root / "graph.onnx", "ab") as file:
        file.write(b"\0")
    assert cache.plan_path(package, REFERENCE, strict=False, fuse=True) != before


@pytest.mark.parametrize("damage", [b"", b"{}", b'{"format":"datong-plan","version":1}', b"\0" * 100])
def test_a_damaged_plan_is_made_again(package, damage):
    first = cache.cached_program(package, REFERENCE)
    (path,) = plans(package)
    good = path.read_bytes()
    path.write_bytes(damage)
    assert cache.cached_program(package, REFERENCE) == first
    assert path.read_bytes() == good and plans(package) == [path]


def test_a_kept_plan_does_not_point_past_the_weights(package):
    cache.cached_program(package, REFERENCE)
    weights = package.root / "model.safetensors"
    os.truncate(weights, weights.stat().st_size - 1)
    with pytest.raises(IntegrityError):
        cache.cached_program(package, REFERENCE)


def test_a_backend_that_learns_or_forgets_gets_a_new_plan(package, picky):
    refused: set[str] = {"glu"}
    chip = picky("chip", lambda node, _: "not today" if node.op in refused else "")
    backends = [chip, *REFERENCE]
    assert len(cache.cached_program(package, backends).parts) > 1
    refused.clear()
    assert [p.backend for p in cache.cached_program(package, backends).parts] == ["chip"]
    refused.add("attention")
    assert {p.backend for p in cache.cached_program(package, backends).parts} == {"chip", "reference"}
    assert len(plans(package)) == 1


def test_a_cache_that_cannot_be_written_costs_time_only(package, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("DATONG_CACHE", str(tmp_path / "file"))
    assert cache.cached_program(package, REFERENCE).parts


def test_missing_graph(package):
    (package.root / "graph.onnx").unlink()
    with pytest.raises(PackageError, match=r"`graph.onnx` of the package cannot be read"):
        cache.cached_program(package, REFERENCE)


def test_the_warm_path_imports_no_onnx(package):
    cache.cached_program(package, REFERENCE)
    script = (
        "import sys\n"
        "from datong.backends.reference.backend import ReferenceBackend\n"
        "from datong.compiler.cache import cached_program\n"
        "from datong.package.reader import open_package\n"
        f"cached_program(open_package({str(package.root)!r}), [ReferenceBackend()])\n"
        "print(sorted(n for n in sys.modules if n.split('.')[0] in ('onnx', 'onnx_ir', 'sympy')))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=_env())
    assert done.stdout.strip() == "[]"


def _env() -> dict[str, str]:
    root = str(Path(__file__).resolve().parents[3])
    return {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}


def test_reopened_package_finds_the_same_plan(package):
    first = cache.cached_program(package, REFERENCE)
    assert cache.cached_program(open_package(package.root), REFERENCE) == first
    assert len(plans(package)) == 1
