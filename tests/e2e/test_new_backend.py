"""`datong new-backend mychip`, as a new user: the project installs, its tests are green, Datong finds the chip."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from datong.spec.ops import CORE


def call(*arguments: str | Path, cwd: Path, **environment: str) -> str:
    environment = {**os.environ, "DATONG_CACHE": str(cwd / "cache"), "PYTHONDONTWRITEBYTECODE": "1", **environment}
    command = [sys.executable, "-m", *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def with_path(*extra: Path) -> str:
    return os.pathsep.join([*map(str, extra), *filter(None, [os.environ.get("PYTHONPATH")])])


@pytest.fixture
def away(tmp_path: Path) -> Path:
    """A working directory that is not the repository."""
    return tmp_path


def test_python_project(away: Path) -> None:
    said = call("datong", "new-backend", "mychip", cwd=away)
    project, site = away / "datong-mychip", away / "site"
    assert f"made {project}" in said and 'pip install -e ".[test]"' in said
    call("pip", "install", "-q", "--no-deps", "--no-build-isolation", "--target", site, project, cwd=away)
    found = with_path(site)
    assert "mychip" in call("datong", "devices", cwd=away, PYTHONPATH=found)
    assert f"{len(CORE) + 2} passed" in call(
        "pytest", "-q", "-p", "no:cacheprovider", project, cwd=away, PYTHONPATH=found
    )


def test_c_project(away: Path) -> None:
    call("datong", "new-backend", "mychip", "--language", "c", "--dir", "plugin", cwd=away)
    project = away / "plugin"
    subprocess.run(["make", "-s", "libdatong_mychip.so"], cwd=project, check=True)
    library = str(project / "libdatong_mychip.so")
    assert "mychip" in call("datong", "devices", cwd=away, DATONG_PLUGINS=library)
    assert "1 passed" in call("pytest", "-q", "-p", "no:cacheprovider", "tests", cwd=project)
    assert len((project / "mychip.c").read_text().splitlines()) < 300
