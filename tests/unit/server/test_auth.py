"""Keys: from a file of hashes and from the environment."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from datong.errors import DatongError
from datong.server.auth import Keys
from datong.server.errors import ApiError


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATONG_API_KEYS", raising=False)


def test_no_keys_let_everybody_in() -> None:
    keys = Keys.load(None)
    assert not keys and keys.name_of(None) is None and keys.name_of("Bearer x") is None


def test_both_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "keys"
    digest = hashlib.sha256(b"one").hexdigest()
    file.write_text(f"# comment\n\nsha256:{digest.upper()}   app-1  # ours\nsha256:{'0' * 64}\n")
    monkeypatch.setenv("DATONG_API_KEYS", "two, three=four")
    keys = Keys.load(file)
    assert keys.name_of("Bearer one") == "app-1"
    assert keys.name_of("bearer two") == "environment-1" and keys.name_of("Bearer four") == "three"
    for wrong in (None, "", "Bearer", "Bearer ", "one", "Basic one", "Bearer three=four", f"Bearer {digest}"):
        with pytest.raises(ApiError) as caught:
            keys.name_of(wrong)
        assert caught.value.status == 401


@pytest.mark.parametrize("text", ["", "# nothing\n", "sha256:12", "sk-plain-key", f"sha256:{'0' * 64} two words"])
def test_a_file_that_is_none(tmp_path: Path, text: str) -> None:
    file = tmp_path / "keys"
    file.write_text(text)
    with pytest.raises(DatongError, match="api keys"):
        Keys.load(file)
    with pytest.raises(DatongError, match="cannot be read"):
        Keys.load(tmp_path / "missing")
