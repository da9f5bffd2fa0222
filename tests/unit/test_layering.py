"""Imports point only backward along the order in which data passes through the folders (docs/layout.md)."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2] / "datong"
ORDER = [
    "errors",
    "dtypes",
    "env",
    "spec",
    "chips",
    "importer",
    "package",
    "compiler",
    "backends",
    "engine",
    "quantize",
    "server",
    "conformance",
    "cli",
]
# What `datong new-backend` copies is another project.
FILES = sorted(path for path in ROOT.rglob("*.py") if not {"project", "project_c"} & set(path.parts))


def layer(module: str) -> int | None:
    parts = module.split(".")
    if parts[0] != "datong" or len(parts) < 2 or parts[1] in {"__version__", "_native"}:
        return None
    return ORDER.index(parts[1]) if parts[1] in ORDER else None


def imported(path: Path) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return names


def offences(path: Path) -> list[str]:
    module = ".".join(("datong", *path.relative_to(ROOT).with_suffix("").parts))
    own = layer(module)
    if own is None:  # datong/__init__.py alone may reach down
        return []
    return [name for name in imported(path) if (other := layer(name)) is not None and other > own]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_only_from_folders_above(path: Path) -> None:
    assert offences(path) == []


def test_every_folder_has_a_place_in_the_order() -> None:
    folders = {p.name for p in ROOT.iterdir() if p.is_dir() and any(p.glob("*.py"))}
    assert folders <= set(ORDER)


def test_the_check_can_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    bad = tmp_path / "spec" / "bad.py"
    bad.parent.mkdir()
    bad.write_text("from datong.engine import model\n")
    assert offences(bad)
