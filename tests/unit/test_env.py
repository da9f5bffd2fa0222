"""Every DATONG_* variable is declared once, read late, and refused when it is wrong."""

import re
from pathlib import Path

import pytest

from datong import env
from datong.errors import DatongError

ROOT = Path(env.__file__).resolve().parent


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in env.VARS:
        monkeypatch.delenv(variable.name, raising=False)


def test_the_cache_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/ignored")
    assert env.cache_dir() == tmp_path / ".cache" / "datong"
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert env.cache_dir() == Path("/x/datong")
    monkeypatch.setenv("DATONG_CACHE", "~/d")
    assert env.cache_dir() == tmp_path / "d"
    monkeypatch.setenv("DATONG_CACHE", " ")
    assert env.cache_dir() == Path("/x/datong")


def test_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    assert env.threads() is None
    monkeypatch.setenv("DATONG_THREADS", "3")
    assert env.threads() == 3
    for text in ("0", "-1", "two", "٣", "99999"):
        monkeypatch.setenv("DATONG_THREADS", text)
        with pytest.raises(DatongError, match="`DATONG_THREADS` must be a whole number from 1 to 4096"):
            env.threads()


def test_verify_and_isa(monkeypatch: pytest.MonkeyPatch) -> None:
    assert env.verify() is False and env.isa() is None
    monkeypatch.setenv("DATONG_VERIFY", "1")
    monkeypatch.setenv("DATONG_ISA", "ref")
    assert env.verify() is True and env.isa() == "ref"
    monkeypatch.setenv("DATONG_VERIFY", "yes")
    with pytest.raises(DatongError, match="`DATONG_VERIFY` must be 0 or 1, it is `yes`"):
        env.verify()


def test_every_variable_that_the_code_names_is_declared() -> None:
    named = {
        name
        for path in ROOT.rglob("*.py")
        for name in re.findall(r"\bDATONG_[A-Z0-9_]+\b", path.read_text(encoding="utf-8"))
    }
    declared = {v.name for v in env.VARS}
    assert named <= declared
    assert len(declared) == len(env.VARS)
