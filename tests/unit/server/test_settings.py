"""Settings: a flag before the environment before the file before the default; what is wrong is named."""

from __future__ import annotations

import inspect
from dataclasses import fields
from pathlib import Path

import pytest

from datong.cli.serve import LOADING, SETTING_OF
from datong.cli.serve import serve as command
from datong.errors import DatongError
from datong.server.settings import Settings, load


def test_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "serve.toml"
    file.write_text('[server]\nport = 1\nmax_requests = 5\ndrain_s = 3\nlog_prompts = true\napi_keys = "~/k"\n')
    monkeypatch.setenv("DATONG_SERVE_PORT", "2")
    monkeypatch.setenv("DATONG_SERVE_MAX_REQUESTS", "6")
    found = load({"port": 3, "host": None}, file)
    assert (found.port, found.max_requests, found.drain_s, found.log_prompts) == (3, 6, 3.0, True)
    assert found.host == "127.0.0.1" and found.api_keys == Path("~/k").expanduser()
    assert load({}).port == 2
    monkeypatch.delenv("DATONG_SERVE_PORT")
    monkeypatch.delenv("DATONG_SERVE_MAX_REQUESTS")
    assert load({}) == Settings()


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("[server]\nprot = 1", "setting `prot`"),
        ('[server]\nport = "many"', "`port`"),
        ("[server]\nmax_requests = 0", "above 0"),
        ("[serve]\nport = 1", "table `serve`"),
        ("port", "TOML"),
        ('[server]\ntls_key = "k"', "belong together"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, match: str) -> None:
    file = tmp_path / "serve.toml"
    file.write_text(text)
    with pytest.raises(DatongError, match=match):
        load({}, file)


def test_the_environment_is_checked_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATONG_SERVE_PROT", "1")
    with pytest.raises(DatongError, match="DATONG_SERVE_PROT"):
        load({})


def test_every_setting_has_a_flag_and_every_flag_is_a_setting() -> None:
    flags = {SETTING_OF.get(name, name) for name in inspect.signature(command).parameters} - {"config"}
    assert flags == {field.name for field in fields(Settings)} and flags >= set(LOADING)


def test_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "serve.toml"
    file.write_text('[server]\nmodels = ["a", "b c@cpu"]\noptions = ["keep_mb=64"]\nstrict = true\ncontext = 64\n')
    found = load({"strict": False, "models": None}, file)
    assert (found.models, found.options, found.context) == (("a", "b c@cpu"), ("keep_mb=64",), 64)
    assert found.strict is False, "a flag can switch off what the file switches on"
    monkeypatch.setenv("DATONG_SERVE_MODELS", "d 'e f'")
    assert load({}, file).models == ("d", "e f") and load({"models": ["g"]}, file).models == ("g",)
    monkeypatch.setenv("DATONG_SERVE_MODELS", "d 'e")
    with pytest.raises(DatongError, match="DATONG_SERVE_MODELS"):
        load({}, file)
    monkeypatch.delenv("DATONG_SERVE_MODELS")
    file.write_text('[server]\nmodels = "a"\n')
    with pytest.raises(DatongError, match="`models`"):
        load({}, file)
