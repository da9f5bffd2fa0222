"""import_checkpoint: which source goes which way."""

from pathlib import Path

import pytest

from datong.errors import DatongError, PackageError
from datong.package.create import import_checkpoint, is_gguf


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match="should be a checkpoint directory or a GGUF file, it does not exist"):
        import_checkpoint(tmp_path / "none")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(PackageError, match="should be a checkpoint directory or a GGUF file, it is neither"):
        import_checkpoint(tmp_path / "notes.txt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatongError, match=r"`config.json` is not in `empty`"):
        import_checkpoint(tmp_path / "empty")
    assert list((tmp_path / "empty").iterdir()) == []


def test_a_broken_gguf_leaves_nothing(tmp_path: Path) -> None:
    for content in (b"", b"GGUF", b"GGUF\x03\0\0\0" + b"\xff" * 16, b"nope"):
        (tmp_path / "x.gguf").write_bytes(content)
        with pytest.raises(DatongError):
            import_checkpoint(tmp_path / "x.gguf")
    assert [p.name for p in tmp_path.iterdir()] == ["x.gguf"]


def test_gguf_by_magic_or_name(tmp_path: Path) -> None:
    for name, content, expected in (("a", b"GGUF....", True), ("b.gguf", b"", True), ("c", b"", False)):
        (tmp_path / name).write_bytes(content)
        assert is_gguf(tmp_path / name) is expected


def test_the_same_directory_as_target_is_in_place(checkpoint: Path) -> None:
    package = import_checkpoint(checkpoint, checkpoint / ".." / checkpoint.name)
    assert package.root == checkpoint
