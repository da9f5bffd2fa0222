"""Reading a stranger's directory: names that stay inside it, files of bounded size, JSON that is an object."""

from __future__ import annotations

import json
import stat
from pathlib import Path, PurePosixPath
from typing import Any

from datong.errors import ContainmentError, ImportFailed
from datong.importer.show import show

MAX_JSON = 100_000_000  # bytes; the largest known tokenizer.json has 35 MB

_LINK_HINT = "copy the checkpoint with its links resolved: `cp -rL SOURCE TARGET`"


def hub_blobs(root: Path) -> Path | None:
    """Where the links of a hub cache lead: `models--x/snapshots/<commit>/file` -> `models--x/blobs/<hash>`.

    A downloaded checkpoint looks like that everywhere, so these links alone may leave the directory. None: `root`, a
    real path, is no snapshot.
    """
    snapshot = root.parent.name == "snapshots" and root.parent.parent.name.startswith("models--")
    return root.parent.parent / "blobs" if snapshot else None


def contained(directory: Path, name: str) -> Path:
    """The path of `name` in `directory`; the file need not exist.

    Raises:
        ContainmentError: `name` is absolute, has `..`, or a link on the way leads out of the directory, other
            than into the blobs of a hub cache.
    """
    pure = PurePosixPath(name)
    if not name or "\0" in name or "\\" in name or pure.is_absolute() or ".." in pure.parts:
        raise ContainmentError(
            "import",
            f"a file name should stay inside the directory, this is {show(name)}",
            "do not use this checkpoint before you know who made it, and why it names such a file",
        )
    path = directory / name
    try:
        real, root = path.resolve(), directory.resolve()
        inside = real.is_relative_to(root) or real.parent == hub_blobs(root)
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
        raise ContainmentError("import", f"`{name}` cannot be followed: {error}") from error
    if not inside:
        raise ContainmentError("import", f"`{name}` is a link that leads out of the directory", _LINK_HINT)
    return path


def read_bytes(directory: Path, name: str, limit: int = MAX_JSON) -> bytes:
    """The bytes of a file of the directory.

    Raises:
        ImportFailed: absent, unreadable, not a regular file, or larger than `limit` bytes.
        ContainmentError: see `contained`.
    """
    path = contained(directory, name)
    try:
        info = path.stat()
        if not stat.S_ISREG(info.st_mode):
            raise ImportFailed("import", f"`{name}` should be a regular file")
        if info.st_size > limit:
            raise ImportFailed("import", f"`{name}` may have {limit} bytes, it has {info.st_size}")
        with path.open("rb") as file:
            return file.read(limit)
    except OSError as error:
        raise ImportFailed("import", f"`{name}` cannot be read: {error.strerror or error}") from error


def read_json(directory: Path, name: str, limit: int = MAX_JSON) -> dict[str, Any]:
    """A JSON object from a file of the directory. A repeated key keeps its last value, as in Python's reader.

    Raises:
        ImportFailed: as `read_bytes`, or not a JSON object.
        ContainmentError: see `contained`.
    """
    raw = read_bytes(directory, name, limit)
    try:
        value = json.loads(raw.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ImportFailed("import", f"`{name}` should be JSON: {reason}") from error
    if not isinstance(value, dict):
        raise ImportFailed("import", f"`{name}` should be a JSON object, it is {type(value).__name__}")
    return value
