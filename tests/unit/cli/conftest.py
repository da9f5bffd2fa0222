"""Fake machines for the command line."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

MACHINES = Path(__file__).resolve().parents[2] / "data" / "machines"


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """`recorded("metax-c500")`: the command line looks at this machine instead, on a terminal of 160 columns."""
    spec = importlib.util.spec_from_file_location("compose_machines", MACHINES / "compose.py")
    assert spec is not None and spec.loader is not None
    compose = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(compose)

    def use(name: str) -> Path:
        root: Path = compose.lay_out(name, tmp_path / name)
        monkeypatch.setenv("DATONG_MACHINE_ROOT", str(root))
        monkeypatch.setattr("datong.cli.console._out", Console(highlight=False, soft_wrap=True, width=160))
        return root

    return use
