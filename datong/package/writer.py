"""An import becomes a package on disk: all of it or nothing, and always the same bytes.

write_in_place   datong.json and graph.onnx beside a checkpoint; no weight is read
write_directory  a new directory: weights written from pending tensors or copied, or left where they are (the cache)
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import structs

from datong.errors import DatongError, PackageError
from datong.importer import layout
from datong.importer.safetensors import Header, read_header
from datong.package import derive, graph, texts
from datong.package.files import (
    Progress,
    new_directory,
    read_bounded,
    read_chunks,
    replace_files,
    sha256_file,
    write_stream,
)
from datong.package.manifest import GRAPH, MAX_BYTES, NAME, FileEntry, Manifest, check, decode, encode
from datong.package.paths import hub_sha256, resolve_inside

if TYPE_CHECKING:
    from datong.importer.imported import Imported

WEIGHTS = "model.safetensors"  # the file that pending tensors go into
SPARE = 64 << 20  # bytes that a disk should have left after an import


def write_in_place(
    imported: Imported,
    source: Path,
    *,
    hash_weights: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Write graph.onnx and datong.json into `source`, the checkpoint's own directory; returns it.

    Files of the package that were there stay as they are when anything fails. An identical package is left alone.
    Raises PackageError when another package, or another graph.onnx, is there and `force` is not set.
    """
    if imported.tensors:
        raise PackageError("write", "weights of another format need a directory of their own", "name a destination")
    graph_bytes = graph.to_bytes(imported.model)
    laid = _Laid()
    for path in imported.files:
        laid.carry(source, path, hash_weights, progress)
    manifest = _manifest(imported, graph_bytes, laid)
    contents = {**_made(imported), GRAPH: graph_bytes, NAME: encode(manifest)}
    existing = [name for name in contents if (source / name).exists()]
    same, as_good = _compare(source, manifest)
    if same and as_good:
        return source
    if existing and not same and not force:
        raise _occupied(source, existing[0])
    replace_files(source, contents)
    return source


def write_directory(
    imported: Imported,
    target: Path,
    *,
    source: Path | None = None,
    link: bool = False,
    extra: Mapping[str, bytes] | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Write a package into the new directory `target`; returns it.

    Args:
        imported: what the importer understood; pending tensors become `model.safetensors`.
        target:   must not exist, be empty, hold the same package, or hold a package and `force` is set.
        source:   directory that `imported.files` are relative to.
        link:     leave those files where they are: only for the cache, whose reader is told where (store.py).
        extra:    files to add that are no part of the package (the cache's own note).
        force:    replace another package.
        progress: told of bytes.

    Raises PackageError; then nothing is left behind and `target` is as it was.
    """
    graph_bytes = graph.to_bytes(imported.model)
    _check_target(target, hashlib.sha256(graph_bytes).hexdigest(), force)
    if not link:
        _check_space(imported, source, target)
    with suppress(_Unchanged), new_directory(target) as partial:
        laid = _Laid()
        for path in imported.files:
            if link:
                laid.carry(_need(source), path, False, progress)
            else:
                laid.copy(_need(source), path, partial, progress)
        if imported.tensors:
            laid.stream(imported, partial / WEIGHTS, progress)
        manifest = _manifest(imported, graph_bytes, laid)
        if target.exists() and any(target.iterdir()) and not force:
            if not all(_compare(target, manifest)):
                raise _occupied(target, NAME)
            raise _Unchanged
        for name, data in {**_made(imported), GRAPH: graph_bytes, NAME: encode(manifest), **(extra or {})}.items():
            made = partial / name
            made.parent.mkdir(parents=True, exist_ok=True)
            write_stream(made, iter((data,)), name, len(data), None)
    return target


class _Unchanged(Exception):  # leaves new_directory without a rename; never seen outside
    """The target holds this very package already."""


def _need(source: Path | None) -> Path:
    if source is None:
        raise PackageError("write", "the import carries files, the directory that they lie in was not given")
    return source


# ── what is in the package ───────────────────────────────────────────────────────────────────────────────────────────


class _Laid:
    """The files of the package so far: their entries, the headers of the weights, the contents of the texts."""

    def __init__(self) -> None:
        self.entries: list[FileEntry] = []
        self.headers: dict[str, Header] = {}
        self.texts: dict[str, bytes] = {}

    def _add(self, path: str, real: Path, size: int, content: str | None) -> None:
        kind = texts.kind_of(path)
        if kind == "weights":
            self.headers[path] = read_header(real)
        elif kind in ("tokenizer", "template"):
            self.texts[path] = read_bounded(real, texts.MAX_BYTES, "import")
        header = self.headers[path].header_sha256 if kind == "weights" else None
        self.entries.append(FileEntry(path, size, kind, header, content))

    def carry(self, source: Path, path: str, hash_weights: bool, progress: Progress | None) -> None:
        """A file that stays where it is. Weights are hashed only where asked for: that reads them."""
        real = resolve_inside(source, path, "import")
        if texts.kind_of(path) != "weights" or hash_weights:
            content: str | None = sha256_file(real, progress)
        else:
            content = hub_sha256(source, path)
        self._add(path, real, real.stat().st_size, content)

    def copy(self, source: Path, path: str, partial: Path, progress: Progress | None) -> None:
        """A file to copy; its bytes pass by, so the hash comes for nothing."""
        real = resolve_inside(source, path, "import")
        copy = partial / path
        copy.parent.mkdir(parents=True, exist_ok=True)
        content = write_stream(copy, read_chunks(real), f"copying {path}", real.stat().st_size, progress)
        self._add(path, copy, copy.stat().st_size, content)

    def stream(self, imported: Imported, path: Path, progress: Progress | None) -> None:
        """The pending tensors, as one safetensors file, at the offsets that the graph already names."""
        head = layout.header(imported.tensors)
        total = len(head) + sum(t.length for t in imported.tensors)

        def chunks() -> Iterator[bytes]:
            yield head
            for tensor in imported.tensors:
                written = 0
                for chunk in tensor.read():
                    written += len(chunk)
                    yield chunk
                if written != tensor.length:
                    raise PackageError(
                        "write", f"tensor `{tensor.name}` should have {tensor.length} bytes, its source gave {written}"
                    )

        content = write_stream(path, chunks(), f"writing {path.name}", total, progress)
        self._add(path.name, path, total, content)


def _made(imported: Imported) -> dict[str, bytes]:
    """The small files that the import made, but for the model's own graph."""
    heads = {derive.head_file(i): graph.to_bytes(head.model) for i, head in enumerate(imported.heads)}
    return {**imported.generated, **heads}


def _manifest(imported: Imported, graph_bytes: bytes, laid: _Laid) -> Manifest:
    """The manifest, after the graph has been held against the headers of the weight files."""
    proto = graph.parse(graph_bytes, "write")
    for data in (graph_bytes, *(graph.to_bytes(head.model) for head in imported.heads)):
        graph.check_externals(graph.externals(graph.parse(data, "write"), "write"), laid.headers, "write")
    made = {GRAPH: graph_bytes, **_made(imported)}
    listed = [
        *laid.entries,
        *(FileEntry(p, len(b), texts.kind_of(p), None, hashlib.sha256(b).hexdigest()) for p, b in made.items()),
    ]
    manifest = derive.manifest_of(imported, proto, listed, {**laid.texts, **imported.generated})
    check(manifest, "write")
    return manifest


# ── what is there already ────────────────────────────────────────────────────────────────────────────────────────────


def _existing(directory: Path) -> Manifest | None:
    """The manifest in `directory`; None when there is none that can be read."""
    path = directory / NAME
    if not path.is_file():
        return None
    with suppress(DatongError):
        return decode(read_bounded(path, MAX_BYTES, NAME), NAME)
    return None


def _compare(directory: Path, new: Manifest) -> tuple[bool, bool]:
    """(does `directory` hold this very package, perhaps sealed since; does it know every content hash that we know)."""
    old = _existing(directory)
    if old is None or not (directory / GRAPH).is_file():
        return False, False
    ours = {f.path: f.sha256 for f in new.files}
    theirs = {f.path: f.sha256 for f in old.files}

    def masked(manifest: Manifest) -> Manifest:
        """Without what sealing adds, and without hashes that only one side knows."""
        files = [
            f if ours.get(f.path) and theirs.get(f.path) else structs.replace(f, sha256=None) for f in manifest.files
        ]
        return structs.replace(manifest, sealed=False, goldens=[], files=files)

    same = masked(old) == masked(new) and sha256_file(directory / GRAPH) == ours[GRAPH]
    return same, all(theirs.get(path) or not known for path, known in ours.items())


def _check_target(target: Path, graph_sha256: str, force: bool) -> None:
    """Refuse early what would be refused after copying all the weights."""
    if not target.exists():
        return
    if not target.is_dir():
        raise PackageError("write", f"`{target}` should be a directory or not exist, it is a file")
    if not any(target.iterdir()):
        return
    old = _existing(target)
    if old is None and not (target / NAME).is_file():
        raise PackageError(
            "write",
            f"`{target}` holds other files and no package, it will not be replaced",
            "name a directory that does not exist",
        )
    entry = old.file(GRAPH) if old else None
    if not force and (entry is None or entry.sha256 != graph_sha256):
        raise _occupied(target, NAME)


def _occupied(directory: Path, name: str) -> PackageError:
    return PackageError(
        "write",
        f"`{directory}` already holds another package or graph (`{name}`)",
        "pass `--force` (`force=True`) to replace it",
    )


def _check_space(imported: Imported, source: Path | None, target: Path) -> None:
    """Say before the first gigabyte, not after the last, that the disk is too small."""
    need = sum(t.length for t in imported.tensors) + SPARE
    need += sum(resolve_inside(_need(source), p, "import").stat().st_size for p in imported.files)
    place = next((p for p in (target, *target.absolute().parents) if p.exists()), Path("/"))
    free = shutil.disk_usage(place).free
    if free < need:
        raise PackageError(
            "write",
            f"`{target}` needs {need} bytes, its disk has {free} free",
            "free some space or write elsewhere; nothing was written",
        )
