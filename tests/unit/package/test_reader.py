"""Opening a package: cheap, lazy, and every lie in it found."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from datong.errors import ContainmentError, DatongError, DtypeError, FormatVersionError, IntegrityError, PackageError
from datong.package import reader
from datong.package.create import import_checkpoint
from datong.package.reader import Package, open_package

ROOT = Path(reader.__file__).resolve().parents[2]


def edit(package: Package, change: Callable[[dict[str, Any]], None]) -> None:
    path = package.root / "datong.json"
    data = json.loads(path.read_bytes())
    change(data)
    path.write_text(json.dumps(data))


def test_tensors_are_views_of_the_file(package: Package) -> None:
    expected = safetensors.numpy.load_file(package.root / "model.safetensors")
    assert set(package.tensors) == set(expected)
    for name, values in expected.items():
        got = package.tensor(name)
        assert got.dtype == values.dtype and np.array_equal(got, values)
        assert not got.flags.owndata and not got.flags.writeable
    with pytest.raises(PackageError, match=r"stores no tensor `nope`"):
        package.tensor("nope")


def test_tensors_of_every_stored_type(checkpoint: Path) -> None:
    extra = {
        "bf16": np.array([1.5, -2], ml_dtypes.bfloat16), "u8": np.arange(3, dtype=np.uint8),
        "empty": np.zeros((0, 4), np.float32),
    }  # fmt: skip
    package = import_checkpoint(checkpoint)
    safetensors.numpy.save_file(extra, checkpoint / "more.safetensors")
    package.headers["more.safetensors"] = reader.read_header(checkpoint / "more.safetensors")
    entry = package.manifest.file("model.safetensors")
    package.manifest.files.append(reader.FileEntry("more.safetensors", 1, "weights", entry.header_sha256, None))
    for name, values in extra.items():
        got = package.tensor(name)
        assert got.dtype == values.dtype and got.shape == values.shape and np.array_equal(got, values)


def test_an_element_type_that_nothing_computes_with(checkpoint: Path, package: Package) -> None:
    head = json.dumps({"x": {"dtype": "F64", "shape": [1], "data_offsets": [0, 8]}}).encode()
    (checkpoint / "odd.safetensors").write_bytes(len(head).to_bytes(8, "little") + head + bytes(8))
    package.headers["odd.safetensors"] = reader.read_header(checkpoint / "odd.safetensors")
    with pytest.raises(DtypeError, match=r"tensor `x` has element type F64, which cannot be viewed"):
        package.tensor("x")


def test_opening_needs_neither_onnx_nor_weights(package: Package) -> None:
    code = (
        "import sys; from datong.package.reader import open_package; from datong.package.store import resolve\n"
        f"p = open_package({str(package.root)!r}); p.chat_template(); p.config()\n"
        "bad = {'onnx', 'onnx_ir', 'sympy', 'torch', 'rich', 'google.protobuf'} & set(sys.modules)\n"
        "sys.exit(f'{bad} {p._maps}' if bad or p._maps else 0)"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], check=True, env=env, timeout=60)


def test_the_graph_knows_where_its_weights_lie(package: Package) -> None:
    model = package.graph()
    external = [v for v in model.graph.initializers.values() if type(v.const_value).__name__ == "ExternalTensor"]
    assert len(external) == 20
    for value in external:
        assert np.array_equal(value.const_value.numpy(), package.tensor(value.name))
    assert package.graph() is not model, "a pass may change its copy"


def test_small_files(checkpoint: Path) -> None:
    (checkpoint / "tokenizer_config.json").write_text(json.dumps({"chat_template": "old", "eos_token": "</s>"}))
    (checkpoint / "generation_config.json").write_bytes(b"\xef\xbb\xbf" + b'{"top_p": 0.9}')
    package = import_checkpoint(checkpoint)
    assert package.chat_template() == "old"
    assert package.generation_config() == {"top_p": 0.9}
    assert package.tokenizer_config()["eos_token"] == "</s>"
    assert package.config()["vocab_size"] == 128
    assert package.tokenizer_file is None
    with pytest.raises(PackageError, match=r"the package has no file `tokenizer.json`"):
        package.path("tokenizer.json")
    (checkpoint / "chat_template.jinja").write_text("new")
    assert import_checkpoint(checkpoint, force=True).chat_template() == "new"


def test_the_format_of_tool_calls_is_carried(checkpoint: Path) -> None:
    tokenizer = {"model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1}, "unk_token": "a"}}
    (checkpoint / "tokenizer.json").write_text(json.dumps(tokenizer))
    (checkpoint / "chat_template.jinja").write_text("{{ '<tool_call>' }} arguments")
    package = import_checkpoint(checkpoint)
    found = package.dialogue()
    assert found is not None and found.name == "hermes"
    data = (checkpoint / "dialogue.json").read_bytes()
    assert package.manifest.text.tool_call_format_sha256 == hashlib.sha256(data).hexdigest()
    (checkpoint / "chat_template.jinja").write_text("no marks")
    assert import_checkpoint(checkpoint, force=True).dialogue() is None


@pytest.mark.parametrize(
    ("template", "found"),
    [
        ([{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}], "d"),
        ([{"name": "rag", "template": "r"}], None),
        (None, None),
        ([1], None),
    ],
)
def test_named_templates(checkpoint: Path, template: object, found: str | None) -> None:
    (checkpoint / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    assert import_checkpoint(checkpoint).chat_template() == found


# ── what is wrong with a package ─────────────────────────────────────────────────────────────────────────────────────


def test_no_package_there(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match=r"should be a package directory, it does not exist"):
        open_package(tmp_path / "none")
    (tmp_path / "file").write_text("x")
    with pytest.raises(PackageError, match=r"should be a package directory, it is a file"):
        open_package(tmp_path / "file")
    with pytest.raises(PackageError, match=r"has no datong.json, so it is not a package yet") as e:
        open_package(tmp_path)
    assert str(e.value.hint).startswith("run: datong import")


def test_a_newer_format(package: Package) -> None:
    edit(package, lambda data: data.update(format_version=2))
    with pytest.raises(FormatVersionError, match=r"the package has format 2"):
        open_package(package.root)


def test_half_written(package: Package) -> None:
    path = package.root / "datong.json"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(PackageError, match=r"should be a JSON object .* truncated"):
        open_package(package.root)


@pytest.mark.parametrize("name", ["graph.onnx", "model.safetensors", "config.json"])
def test_a_file_is_gone(package: Package, name: str) -> None:
    (package.root / name).unlink()
    with pytest.raises(IntegrityError, match=f"`{name}` should be a file of the package, it is missing"):
        open_package(package.root)


@pytest.mark.parametrize("change", [-1, +1])
def test_a_file_of_another_size(package: Package, change: int) -> None:
    path = package.root / "model.safetensors"
    os.truncate(path, path.stat().st_size + change)
    with pytest.raises(IntegrityError, match=r"`model.safetensors` should have 331024 bytes, it has 33102") as e:
        open_package(package.root)
    assert e.value.hint is not None and "import the model again" in e.value.hint


def test_another_header_of_the_same_size(package: Package) -> None:
    path = package.root / "model.safetensors"
    path.write_bytes(path.read_bytes().replace(b"layers.0.mlp", b"layers.9.mlp"))
    with pytest.raises(IntegrityError, match=r"the header of `model.safetensors` is not the one that was imported"):
        open_package(package.root)


def test_overlapping_tensors(package: Package) -> None:
    path = package.root / "model.safetensors"
    data = path.read_bytes()
    start, end = package.headers["model.safetensors"].tensors["model.norm.weight"].offset, data.index(b"}}", 8)
    assert start and end
    wrong = data.replace(b'"data_offsets":[0,', b'"data_offsets":[4,', 1)
    path.write_bytes(wrong)
    with pytest.raises(IntegrityError, match=r"^\[model.safetensors\] tensor"):
        open_package(package.root)


@pytest.mark.parametrize("target", ["/etc/hostname", "../secret"])
def test_a_link_that_leaves(package: Package, target: str) -> None:
    (package.root.parent / "secret").write_text("x")
    (package.root / "config.json").unlink()
    (package.root / "config.json").symlink_to(target)
    with pytest.raises(ContainmentError, match=r"`config.json` is a link that leaves the package directory"):
        open_package(package.root)


def test_the_manifest_itself_is_a_link_that_leaves(package: Package) -> None:
    shutil.move(package.root / "datong.json", package.root.parent / "datong.json")
    (package.root / "datong.json").symlink_to("../datong.json")
    with pytest.raises(ContainmentError, match=r"`datong.json` is a link"):
        open_package(package.root)


def test_a_pipe_is_not_opened(package: Package) -> None:
    (package.root / "config.json").unlink()
    os.mkfifo(package.root / "config.json")
    with pytest.raises(IntegrityError, match=r"is not a regular file"):
        open_package(package.root)


def test_a_changed_small_file_of_the_same_size(package: Package) -> None:
    path = package.root / "config.json"
    path.write_bytes(path.read_bytes().replace(b"llama", b"lluma"))
    with pytest.raises(
        IntegrityError, match=r"^\[config.json\] the content should have SHA-256 \w{12}…, it has another"
    ):
        open_package(package.root).config()


def test_a_changed_graph_of_the_same_size(package: Package) -> None:
    path = package.root / "graph.onnx"
    path.write_bytes(path.read_bytes().replace(b"Sigmoid", b"Softmax"))
    with pytest.raises(IntegrityError, match=r"^\[graph.onnx\] the content should have SHA-256"):
        open_package(package.root).graph()


@pytest.mark.parametrize("text", ["[]", "{", "\ud800"])
def test_json_files_that_are_none(checkpoint: Path, text: str) -> None:
    (checkpoint / "generation_config.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(DatongError, match=r"JSON"):
        import_checkpoint(checkpoint).generation_config()
