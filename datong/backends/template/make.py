"""`new_backend`: a project of its own made from this folder, in Python or in C."""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path

import datong
from datong.errors import BackendError

HERE = Path(__file__).parent
_NAME = re.compile(r"[a-z][a-z0-9]{1,30}")
_TAKEN = {"cpu", "datong", "example", "onnxruntime", "reference", "sim", "template", "test", "torch"}


def new_backend(name: str, directory: Path | None = None, *, language: str = "python") -> Path:
    """Make the project `datong-<name>` in `directory` (default: here), which must not exist.

    Args:
        name: what users will type; lower-case letters and digits.
        directory: of the project itself; None: `datong-<name>` in the working directory.
        language: `python` (the Backend protocol) or `c` (a shared library behind backend.h).

    Returns:
        The directory.

    Raises:
        BackendError: a name that cannot be, or a directory that is there already; nothing is written then.
    """
    if not _NAME.fullmatch(name) or name in _TAKEN:
        hint = "two or more lower-case letters and digits, a letter first; names that Datong uses are taken"
        raise BackendError("new-backend", f"the name should be one of a new chip, is `{name}`", hint)
    if language not in ("python", "c"):
        raise BackendError("new-backend", f"the language should be python or c, is `{language}`")
    target = (directory or Path(f"datong-{name}")).absolute()
    if target.exists():
        raise BackendError("new-backend", f"`{target}` should not exist yet", "give another --dir, or remove it")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".datong-", dir=target.parent) as partial:
            project = Path(partial) / "project"
            (_python if language == "python" else _c)(name, project)
            project.rename(target)
    except OSError as error:
        raise BackendError("new-backend", f"`{target}` cannot be written: {error.strerror}") from error
    return target


def _python(name: str, project: Path) -> None:
    _copy(HERE / "project", project, name)
    package = project / f"datong_{name}"
    package.mkdir()
    for file in (
        "__init__.py",
        "backend.py",
        "kernels.py",
        "kernels_state.py",
        "kernels_sparse.py",
        "kernels_latent.py",
    ):
        _copy(HERE / file, package / file, name)


def _c(name: str, project: Path) -> None:
    _copy(HERE / "project_c", project, name)
    _copy(_shipped("backends/template/example.c"), project / f"{name}.c", name, word="example")
    (project / "datong").mkdir()
    shutil.copyfile(_shipped("include/datong/backend.h"), project / "datong" / "backend.h")


def _shipped(name: str) -> Path:
    """A file that the native build installs; `__path__` has two entries in an editable install."""
    for root in datong.__path__:
        if (path := Path(root) / name).is_file():
            return path
    raise BackendError("new-backend", f"`{name}` should lie in the installed package", "reinstall: pip install datong")


def _copy(source: Path, target: Path, name: str, word: str = "template") -> None:
    """Copy a file or a tree; `word`, in all its spellings, becomes the chip's name."""
    if source.is_dir():
        target.mkdir()
        for child in sorted(source.iterdir()):
            if child.name != "__pycache__":
                _copy(child, target / child.name, name, word)
        return
    text = source.read_text(encoding="utf-8").replace("datong.backends.template", f"datong_{name}")
    text = text.replace(word.capitalize(), name.capitalize()).replace(word, name)
    target.write_text(text, encoding="utf-8")
