"""Names that cannot be, directories that are there, and a project without a trace of the template's name."""

from pathlib import Path

import pytest

from datong.backends.template.make import new_backend
from datong.errors import BackendError


@pytest.mark.parametrize("language", ["python", "c"])
def test_every_name_is_the_new_one(tmp_path: Path, language: str) -> None:
    project = new_backend("mychip", tmp_path / "deep/project", language=language)
    files = [path for path in project.rglob("*") if path.is_file()]
    assert len(files) >= 5
    for path in files:
        assert "template" not in path.read_text(encoding="utf-8").lower(), path
        assert not {"template", "example"} & set(path.name.split("."))
    assert list(tmp_path.rglob(".datong-*")) == []


@pytest.mark.parametrize("name", ["cpu", "template", "My", "a", "my-chip", "../up", "", "x" * 40, "1chip"])
def test_names_that_cannot_be(tmp_path: Path, name: str) -> None:
    with pytest.raises(BackendError, match="the name should be one of a new chip"):
        new_backend(name, tmp_path / "project")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(BackendError, match="should not exist yet"):
        new_backend("mychip", tmp_path / "there")
    with pytest.raises(BackendError, match="python or c, is `rust`"):
        new_backend("mychip", tmp_path / "project", language="rust")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BackendError, match="cannot be written"):
        new_backend("mychip", tmp_path / "file" / "project")
