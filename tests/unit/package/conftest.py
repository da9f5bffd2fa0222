"""A tiny checkpoint and the package made of it, fresh for each test."""

import shutil
from pathlib import Path

import pytest

from datong.package.create import import_checkpoint
from datong.package.reader import Package

GOLDENS = Path(__file__).resolve().parents[2] / "data" / "goldens"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A Hugging Face directory: config.json and model.safetensors, 0.3 MB."""
    target = tmp_path / "tiny"
    target.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(GOLDENS / "smollm2" / name, target / name)
    return target


@pytest.fixture
def package(checkpoint: Path) -> Package:
    """The checkpoint, imported in place."""
    return import_checkpoint(checkpoint)
