"""Single files, shards and an index: complete and consistent, or refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from safetensors.torch import save_file

from datong.errors import CheckpointError, ContainmentError, ImportFailed
from datong.importer.checkpoint import INDEX, SINGLE, read_weights, weight_files


def shard(path: Path, *names: str) -> None:
    safetensors.numpy.save_file({n: np.full((2, 3), i, np.float32) for i, n in enumerate(names)}, path)


def index(directory: Path, **places: str) -> None:
    (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))


def two_shards(directory: Path) -> None:
    shard(directory / "s1.safetensors", "a", "b")
    shard(directory / "s2.safetensors", "c")
    index(directory, a="s1.safetensors", b="s1.safetensors", c="s2.safetensors")


def test_single_file(tmp_path: Path) -> None:
    shard(tmp_path / SINGLE, "a", "b")
    weights = read_weights(tmp_path)
    piece = weights.take("b", (2, 3)).pieces["codes"]
    raw = (tmp_path / SINGLE).read_bytes()
    assert piece.file == SINGLE and np.all(np.frombuffer(raw[piece.offset :][: piece.length], np.float32) == 1)
    assert list(weights.left_over()) == ["a"]


def test_shards(tmp_path: Path) -> None:
    two_shards(tmp_path)
    calls: list[tuple[str, int, int]] = []
    weights = read_weights(tmp_path, lambda *call: calls.append(call))
    assert {n: w.pieces["codes"].file for n, w in weights.weights.items()} == {
        "a": "s1.safetensors", "b": "s1.safetensors", "c": "s2.safetensors"}  # fmt: skip
    assert weight_files(weights) == ["s1.safetensors", "s2.safetensors"]
    assert calls[-1][1:] == (2, 2)


def test_a_tensor_that_the_index_forgot_is_left_over_and_not_unseen(tmp_path: Path) -> None:
    two_shards(tmp_path)
    index(tmp_path, a="s1.safetensors", c="s2.safetensors")
    assert set(read_weights(tmp_path).left_over()) == {"a", "b", "c"}


def test_types_without_arithmetic_are_refused_when_taken_only(tmp_path: Path) -> None:
    import torch

    save_file(
        {"a": torch.ones(2), "q": torch.ones(2).to(torch.float8_e4m3fn), "d": torch.ones(2).double()}, tmp_path / SINGLE
    )
    weights = read_weights(tmp_path)
    assert weights.has("q") and set(weights.left_over()) == {"a", "q", "d"}
    with pytest.raises(CheckpointError, match=r"tensor `q` should be F32, F16 or BF16, the checkpoint has F8_E4M3"):
        weights.take("q", (2,))
    weights.ignore(lambda n: n in "qd", "not needed")
    assert list(weights.left_over()) == ["a"]


@pytest.mark.parametrize(
    ("places", "kind", "text"),
    [
        (
            {"a": "s1.safetensors", "z": "s2.safetensors"},
            CheckpointError,
            "places tensor `z` in `s2.safetensors`, which does not",
        ),
        (
            {"a": "s2.safetensors", "c": "s2.safetensors"},
            CheckpointError,
            "places tensor `a` in `s2.safetensors`, which does not",
        ),
        ({"a": "s9.safetensors"}, CheckpointError, "names `s9.safetensors`, which is not there"),
        ({"a": "../s1.safetensors"}, ContainmentError, "should stay inside the directory"),
        ({"a": "/etc/passwd"}, ContainmentError, "should stay inside the directory"),
        ({"a": "x\\y"}, ContainmentError, "should stay inside the directory"),
        ({"a": ""}, ContainmentError, "should stay inside the directory"),
        ({}, CheckpointError, "should have a `weight_map`"),
        ({"a": 1}, CheckpointError, "should have a `weight_map`"),
    ],
)
def test_index_that_does_not_fit(tmp_path: Path, places: dict[str, str], kind: type[Exception], text: str) -> None:
    two_shards(tmp_path)
    index(tmp_path, **places)
    with pytest.raises(kind, match=text):
        read_weights(tmp_path)


@pytest.mark.parametrize("raw", [b"", b"[]", b"{", b"\xff", b"[" * 100_000])
def test_index_that_is_no_json_object(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / INDEX).write_bytes(raw)
    with pytest.raises(ImportFailed, match=r"should be (a )?JSON"):
        read_weights(tmp_path)


def test_one_name_in_two_shards(tmp_path: Path) -> None:
    two_shards(tmp_path)
    shard(tmp_path / "s2.safetensors", "c", "a")
    with pytest.raises(CheckpointError, match=r"tensor `a` lies in both `s1\.safetensors` and `s2\.safetensors`"):
        read_weights(tmp_path)


def test_links_may_not_leave_the_directory(tmp_path: Path) -> None:
    inside = tmp_path / "snapshot"
    inside.mkdir()
    shard(tmp_path / "blob", "a")
    (inside / SINGLE).symlink_to("../blob")
    with pytest.raises(ContainmentError, match="leads out of the directory") as error:
        read_weights(inside)
    assert "cp -rL" in (error.value.hint or "")


def test_links_inside_the_directory_are_followed(tmp_path: Path) -> None:
    shard(tmp_path / "real.safetensors", "a")
    (tmp_path / SINGLE).symlink_to("real.safetensors")
    assert read_weights(tmp_path).has("a")


def test_a_loop_of_links_is_refused(tmp_path: Path) -> None:
    (tmp_path / SINGLE).symlink_to(SINGLE)
    with pytest.raises((ContainmentError, CheckpointError)):
        read_weights(tmp_path)


def test_single_file_and_index_at_once(tmp_path: Path) -> None:
    two_shards(tmp_path)
    shard(tmp_path / SINGLE, "a")
    with pytest.raises(CheckpointError, match="both are here"):
        read_weights(tmp_path)


@pytest.mark.parametrize(
    ("file", "hint"), [("pytorch_model.bin", "pickle"), ("m.gguf", "GGUF file itself"), ("x.txt", "config.json")]
)
def test_no_safetensors_at_all(tmp_path: Path, file: str, hint: str) -> None:
    (tmp_path / file).write_bytes(b"")
    with pytest.raises(CheckpointError, match="neither") as error:
        read_weights(tmp_path)
    assert hint in (error.value.hint or "")
