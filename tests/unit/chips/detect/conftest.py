"""Fake machines, laid out from tests/data/machines."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from datong.chips.detect import Machine

MACHINES = Path(__file__).resolve().parents[3] / "data" / "machines"

Make = Callable[..., Machine]


@pytest.fixture(scope="session")
def compose() -> ModuleType:
    """tests/data/machines/compose.py"""
    spec = importlib.util.spec_from_file_location("compose_machines", MACHINES / "compose.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def make(compose: ModuleType, tmp_path: Path) -> Make:
    """`make("ascend-910b-x8", remove=["/dev/davinci0"], python={…})`: a machine of the library, changed."""

    def lay_out(
        name: str,
        remove: tuple[str, ...] = (),
        files: dict[str, str] | None = None,
        environ: dict[str, str] | None = None,
        python: dict[str, str | None] | None = None,
        access: dict[str, str] | None = None,
    ) -> Machine:
        root = compose.lay_out(name, tmp_path / name)
        for path in remove:
            (root / path.lstrip("/")).unlink()
        for path, text in (files or {}).items():
            compose.write(root, path, text)
        for table, change in (("environ", environ), ("python", python), ("access", access)):
            if change is not None:
                file = root / f"{table}.json"
                have = json.loads(file.read_text()) if file.exists() else {}
                have |= change
                file.write_text(json.dumps({k: v for k, v in have.items() if v is not None}))
        return Machine(root)

    return lay_out
