"""Sealing: content hashes, golden vectors, and what sealing must not hide."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from datong.errors import IntegrityError, PackageError, ShapeError
from datong.importer import assets
from datong.package.create import import_checkpoint
from datong.package.reader import Package
from datong.package.seal import MAX_TOKENS, TOP, seal, token_ids


def made_up(ids: np.ndarray) -> np.ndarray:
    """Logits that depend on the last id; token 7 and 9 tie."""
    logits = np.sin(np.arange(128)[None, :] * (1 + ids[:, None])).astype(np.float32)
    logits[:, [7, 9]] = 5
    return logits


def test_every_file_is_hashed(package: Package) -> None:
    assert package.manifest.file("model.safetensors").sha256 is None
    seen: list[tuple[str, int, int]] = []
    sealed = seal(package, progress=lambda *call: seen.append(call))
    assert sealed.manifest.sealed and sealed.manifest.goldens == []
    for entry in sealed.manifest.files:
        assert entry.sha256 == hashlib.sha256((package.root / entry.path).read_bytes()).hexdigest()
    assert seen[-1] == ("hashing model.safetensors", 331024, 331024)
    assert sorted(p.name for p in package.root.iterdir()) == [
        "config.json", "datong.json", "graph.onnx", "model.safetensors",
    ]  # fmt: skip


def test_golden_vectors_are_the_best_tokens_after_each_prompt(package: Package) -> None:
    sealed = seal(package, made_up, "made-up")
    assert [g.ids for g in sealed.manifest.goldens] == token_ids(package)
    for golden in sealed.manifest.goldens:
        last = made_up(np.array(golden.ids))[-1]
        assert golden.position == len(golden.ids) - 1 and golden.backend == "made-up"
        assert golden.tokens[:2] == [7, 9], "of equal logits the smaller id comes first"
        assert len(golden.tokens) == TOP
        assert np.allclose(golden.logits, last[golden.tokens], atol=1e-6)
        assert golden.logits == sorted(golden.logits, reverse=True)


def test_sealing_twice_gives_the_same_bytes_and_keeps_goldens(package: Package) -> None:
    sealed = seal(package, made_up)
    assert seal(sealed).fingerprint == sealed.fingerprint
    assert seal(sealed, made_up).fingerprint == sealed.fingerprint


def test_sealing_does_not_hide_a_change(package: Package) -> None:
    sealed = seal(package)
    before = (package.root / "datong.json").read_bytes()
    with open(package.root / "model.safetensors", "r+b") as f:
        f.seek(-1, os.SEEK_END)
        f.write(b"\x55")
    with pytest.raises(IntegrityError, match=r"^\[model.safetensors\] the content should have SHA-256 .* it has"):
        seal(sealed)
    assert (package.root / "datong.json").read_bytes() == before


def test_a_backend_that_is_wrong_is_not_recorded(package: Package) -> None:
    with pytest.raises(ShapeError, match=r"logits should have shape \[24, 128\], the backend gave \[24, 5\]"):
        seal(package, lambda ids: np.zeros((len(ids), 5), np.float32))
    with pytest.raises(IntegrityError, match="logits should be finite"):
        seal(package, lambda ids: np.full((len(ids), 128), np.nan, np.float32))


def test_ids_without_a_tokenizer_are_fixed(package: Package) -> None:
    first, second = token_ids(package)
    assert len(first) == len(second) == MAX_TOKENS and first != second
    assert all(0 <= i < 128 for i in first + second)


def with_tokenizer(checkpoint: Path, vocab: dict[str, int]) -> Package:
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(checkpoint / "tokenizer.json"))
    return import_checkpoint(checkpoint)


def test_ids_come_from_the_tokenizer(checkpoint: Path) -> None:
    package = with_tokenizer(checkpoint, {"?": 0, "The": 1, "capital": 2, "of": 3})
    assert token_ids(package, ["The capital of France", "x", ""]) == [[1, 2, 3, 0], [0]]


def test_a_tokenizer_of_another_model(checkpoint: Path) -> None:
    package = with_tokenizer(checkpoint, {"?": 5000})
    with pytest.raises(PackageError, match="gives no ids of the model's vocabulary"):
        seal(package, made_up)


def test_a_tokenizer_that_is_none(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assets, "check_tokenizer", lambda *_: None)  # a package that another importer made
    (checkpoint / "tokenizer.json").write_text("{}")
    with pytest.raises(PackageError, match=r"^\[tokenizer.json\] the tokenizer cannot be read"):
        seal(import_checkpoint(checkpoint), made_up)
