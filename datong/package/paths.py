"""Which paths a package may name: relative ones, inside its directory, also after links are followed.

The one link that may leave the directory is that of a hub cache, into its blobs (importer/files.py `hub_blobs`).
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from datong.errors import ContainmentError, IntegrityError
from datong.importer.files import hub_blobs

MAX_PATH = 512  # characters; file names in packages are short, and most file systems stop at 255 bytes a part


def check_relative(path: str, where: str) -> None:
    """Refuse a path text that is not plain and relative. Raises ContainmentError. Touches no file."""
    parts = path.split("/")
    bad = (
        not path
        or len(path) > MAX_PATH
        or not path.isprintable()
        or "\\" in path
        or path.startswith("/")
        or re.match(r"^[A-Za-z]:", path) is not None
        or any(part in ("", ".", "..") for part in parts)
    )
    if bad:
        raise ContainmentError(
            where,
            f"a file must be named by a plain path below the package directory, {ascii(path)[:90]} is not one",
            "absolute paths, `..`, `.`, empty parts and backslashes are refused",
        )


def resolve_inside(root: Path, path: str, where: str) -> Path:
    """The real file behind `root/path`. Raises ContainmentError when it leaves, IntegrityError when it is missing."""
    check_relative(path, where)
    real_root = Path(os.path.realpath(root))
    real = Path(os.path.realpath(real_root / path))
    if not real.is_relative_to(real_root) and real.parent != hub_blobs(real_root):
        raise ContainmentError(
            where,
            f"`{path}` is a link that leaves the package directory, to `{real}`",
            "replace the link by a copy of the file",
        )
    if not real.is_file():
        kind = "is not a regular file" if real.exists() else "is missing"
        raise IntegrityError(where, f"`{path}` should be a file of the package, it {kind}", "import the model again")
    return real


def hub_sha256(root: Path, path: str) -> str | None:
    """The content hash that the hub gave this file; it names the blob of a large file after it. None: unknown."""
    blobs = hub_blobs(Path(os.path.realpath(root)))
    real = Path(os.path.realpath(root / path))
    if blobs is None or real.parent != blobs or not re.fullmatch(r"[0-9a-f]{64}", real.name):
        return None
    return real.name
