"""From what the user names to an open package: a package, a checkpoint, a GGUF file, or a known name.

Checkpoints are imported once into the cache directory:

    <cache>/packages/<name>-<hash of the absolute path>/       the entry: a package, plus
        cache.json                                             what it was made from, and where its weights lie
    <cache>/packages/<name>-<hash of the absolute path>.lock   held while it is made

An entry is good while name, size and mtime of every input file, and the version of Datong, are as recorded. For a
Hugging Face directory the weights stay where they are: `cache.json` names that directory. It is trusted because it lies
in the user's cache; a `cache.json` anywhere else is never read.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

import datong
from datong import env
from datong.errors import DatongError, PackageError
from datong.importer.digest import sha256
from datong.package import known
from datong.package.create import is_gguf
from datong.package.files import Progress, locked
from datong.package.manifest import NAME
from datong.package.reader import Package, open_package

if TYPE_CHECKING:
    from datong.importer.imported import Imported

NOTE = "cache.json"


class Note(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """`cache.json`."""

    version: str  # of Datong, and a hash of the importer's code: another importer makes another graph
    source: str  # absolute path
    weights_root: str | None  # absolute; None: the entry holds its weights
    inputs: list[tuple[str, int, int]]  # name, bytes, mtime in ns


def resolve(name: str | Path, progress: Progress | None = None) -> Package:
    """Open what `name` names, importing it into the cache when it is a checkpoint.

    Raises PackageError when it is nothing of that, and whatever the import raises.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        if (path / NAME).exists():
            return open_package(path)
        return _cached(path.resolve(), progress)
    if path.is_file():
        if not is_gguf(path):
            raise PackageError("load", f"`{name}` should be a package, a checkpoint directory or a GGUF file")
        return _cached(path.resolve(), progress)
    if str(name) in known.KNOWN:
        return _cached(known.find(str(name)), progress)
    names = ", ".join(sorted(known.KNOWN))
    raise PackageError(
        "load", f"`{name}` is neither a path that exists nor a known name", f"known names: {names}; or give a path"
    )


def entry_of(source: Path) -> Path:
    """The cache entry of a checkpoint, whether it exists or not."""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", source.stem if source.is_file() else source.name)[:64] or "model"
    key = sha256(str(source).encode("utf-8", "surrogateescape"))[:16]
    return env.cache_dir() / "packages" / f"{stem}-{key}"


def _cached(source: Path, progress: Progress | None) -> Package:
    entry = entry_of(source)
    note = _note(source)
    found = _open_entry(entry, note)
    if found is not None:
        return found
    _need_writable(entry.parent)
    with locked(entry.with_name(entry.name + ".lock")):
        found = _open_entry(entry, note)  # another process may have made it while we waited
        if found is not None:
            return found
        made = _make(source, entry, note, progress)
        return open_package(entry, weights_root=Path(made.weights_root) if made.weights_root else None)


def _need_writable(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        writable, reason = os.access(directory, os.W_OK | os.X_OK), "permission denied"
    except OSError as e:
        writable, reason = False, e.strerror or str(e)
    if not writable:
        raise PackageError(
            "load",
            f"checkpoints are imported into `{directory}`, which cannot be written: {reason}",
            f"set {env.CACHE.name} to a directory that can",
        )


def _open_entry(entry: Path, want: Note) -> Package | None:
    """The entry, if it is there, whole, and made from just this."""
    try:
        have = msgspec.json.decode((entry / NOTE).read_bytes(), type=Note)
        if msgspec.structs.replace(have, weights_root=want.weights_root) != want:
            return None
        return open_package(entry, weights_root=Path(have.weights_root) if have.weights_root else None)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, DatongError):
        return None  # ruined by hand or by a disk: made again


def _make(source: Path, entry: Path, note: Note, progress: Progress | None) -> Note:
    """Write the entry; its note, in which weights that were moved have no root elsewhere."""
    from datong.package.writer import write_directory

    imported: Imported
    if source.is_dir():
        from datong.importer.hf import import_directory

        imported = import_directory(source, progress)
        if imported.tensors:
            note = msgspec.structs.replace(note, weights_root=None)
        extra = {NOTE: msgspec.json.encode(note)}
        link = not imported.tensors
        write_directory(imported, entry, source=source, link=link, extra=extra, force=True, progress=progress)
    else:
        from datong.importer.gguf.importer import import_gguf

        imported = import_gguf(source, progress)
        extra = {NOTE: msgspec.json.encode(note)}
        write_directory(imported, entry, extra=extra, force=True, progress=progress)
    return note


def _note(source: Path) -> Note:
    """What an entry for `source` must have been made from to be good."""
    try:
        files = sorted(p for p in source.iterdir() if p.is_file()) if source.is_dir() else [source]
        inputs = [(p.name, (info := p.stat()).st_size, info.st_mtime_ns) for p in files]
    except OSError as e:
        raise PackageError("load", f"`{source}` could not be read: {e.strerror or e}") from None
    weights_root = str(source) if source.is_dir() else None
    return Note(_version(), str(source), weights_root, inputs)


def _version() -> str:
    """Version of Datong and of the code that imports; reads about 30 small files, 1 ms."""
    root = Path(datong.__file__).parent
    files = sorted((*root.glob("importer/**/*.py"), *root.glob("package/*.py")))
    return f"{datong.__version__}+{sha256(b''.join(path.read_bytes() for path in files))[:12]}"
