"""A package from disk: opened lazily, with every bound checked before it is used.

Opening reads the manifest, the sizes of the files and the headers of the weights: milliseconds, whatever the size. The
graph is parsed when asked for, weights are mapped when touched. Nothing here imports onnx before `graph()` is called.
"""

from __future__ import annotations

import math
import mmap
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from datong import dtypes
from datong.errors import CheckpointError, DtypeError, IntegrityError, PackageError
from datong.importer.digest import sha256
from datong.importer.safetensors import Entry, Header, read_header
from datong.package import texts
from datong.package.files import read_bounded
from datong.package.manifest import GRAPH, MAX_BYTES, NAME, FileEntry, Manifest, decode
from datong.package.paths import resolve_inside

if TYPE_CHECKING:
    import onnx_ir as ir

    from datong.spec.dialogue import Dialogue

MAX_GRAPH = (1 << 31) - 1  # bytes; protobuf's own limit
AGAIN = "a file was changed since the package was made: import the model again"


class Package:
    """One model on disk, read-only. Made by `open_package`; may be used from several threads.

    Attributes:
        root:         directory of datong.json and graph.onnx.
        weights_root: directory that weight files are relative to; another than `root` only for entries of the cache.
        manifest:     the manifest as read.
        headers:      of each weight file, by its path in the package.
        fingerprint:  SHA-256 of datong.json, hex: a key for whatever is derived from the package.
    """

    def __init__(self, root: Path, weights_root: Path, manifest: Manifest, fingerprint: str) -> None:
        self.root, self.weights_root = root, weights_root
        self.manifest, self.fingerprint = manifest, fingerprint
        self.headers: dict[str, Header] = {}
        self._maps: dict[str, mmap.mmap] = {}

    def __repr__(self) -> str:
        return f"Package({self.manifest.model.name!r}, {str(self.root)!r})"

    # ── files ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def path(self, name: str) -> Path:
        """The real file behind a listed name. Raises PackageError when it is not listed, ContainmentError outside."""
        if self.manifest.file(name) is None:
            raise PackageError(NAME, f"the package has no file `{name}`")
        return self._locate(name)

    def _locate(self, name: str) -> Path:
        own = self.root != self.weights_root and (self.root / name).exists()
        return resolve_inside(self.root if own else self.weights_root, name, NAME)

    def read(self, name: str, limit: int = texts.MAX_BYTES) -> bytes:
        """The bytes of a small file, held against the manifest. Raises IntegrityError when they were changed."""
        data = read_bounded(self.path(name), limit, name)
        entry = self.manifest.file(name)
        if entry and entry.sha256 and sha256(data) != entry.sha256:
            raise IntegrityError(name, f"the content should have SHA-256 {entry.sha256[:12]}…, it has another", AGAIN)
        return data

    # ── graph and weights ────────────────────────────────────────────────────────────────────────────────────────────

    def graph(self, name: str = GRAPH) -> ir.Model:
        """The computation, a fresh copy on each call; its external tensors are checked against the weight files.

        Raises PackageError or IntegrityError. Takes a second the first time: onnx_ir is imported.
        """
        from datong.package import graph

        proto = graph.parse(self.read(name, MAX_GRAPH), name)
        graph.check_externals(graph.externals(proto, name), self.headers, name)
        return graph.to_model(proto, self.weights_root, name)

    def graphs(self) -> list[str]:
        """Files of the graphs: the model's own, then those of the heads for speculation."""
        return [GRAPH, *(head.graph for head in self.manifest.speculation)]

    @cached_property
    def tensors(self) -> dict[str, tuple[str, Entry]]:
        """Every stored tensor: name -> (file, entry)."""
        return {name: (file, e) for file, header in self.headers.items() for name, e in header.tensors.items()}

    def tensor(self, name: str) -> np.ndarray:
        """A stored tensor as a read-only view of the mapped file; 4-bit tensors come as packed bytes, uint8.

        Raises PackageError for an unknown name, DtypeError for an element type that Datong does not compute with.
        """
        if name not in self.tensors:
            raise PackageError(NAME, f"the package stores no tensor `{name}`")
        file, entry = self.tensors[name]
        dtype = dtypes.BY_SAFETENSORS.get(entry.dtype)
        if dtype is None:
            raise DtypeError(file, f"tensor `{name}` has element type {entry.dtype}, which cannot be viewed")
        count = math.prod(entry.shape)
        if count == 0:
            return np.empty(entry.shape, dtype.numpy)
        return np.frombuffer(self._map(file), dtype.numpy, count, entry.offset).reshape(entry.shape)

    def _map(self, file: str) -> mmap.mmap:
        if file not in self._maps:
            with open(self.path(file), "rb") as f:
                self._maps[file] = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
        return self._maps[file]

    # ── text ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def tokenizer_file(self) -> Path | None:
        """tokenizer.json; None when the package carries none."""
        return self.path("tokenizer.json") if self.manifest.file("tokenizer.json") else None

    def tokenizer_config(self) -> dict[str, Any]:
        """tokenizer_config.json; empty when the package carries none."""
        return self._json("tokenizer_config.json")

    def generation_config(self) -> dict[str, Any]:
        """generation_config.json; empty when the package carries none."""
        return self._json("generation_config.json")

    def config(self) -> dict[str, Any]:
        """config.json; empty when the package carries none."""
        return self._json("config.json")

    def pooling(self) -> Literal["mean", "last"] | None:
        """How sentence-transformers makes one vector of a text with this model; None: not said, or in another way."""
        said = self._json("1_Pooling/config.json")
        if said.get("pooling_mode_lasttoken") is True or said.get("pooling_mode") == "lasttoken":
            return "last"
        mean = said.get("pooling_mode_mean_tokens") is True or said.get("pooling_mode") == "mean"
        return "mean" if mean else None

    def _json(self, name: str) -> dict[str, Any]:
        return texts.json_object(self.read(name), name) if self.manifest.file(name) else {}

    def dialogue(self) -> Dialogue | None:
        """How the model writes reasoning and tool calls; None where the package does not say it."""
        from datong.spec import dialogue

        if not self.manifest.file(dialogue.NAME):
            return None
        return dialogue.decode(self.read(dialogue.NAME, dialogue.MAX_BYTES))

    def chat_template(self) -> str | None:
        """The text of the chat template, wherever the package carries it; None when it has none."""
        return texts.template_of({n: self.read(n) for n in texts.TEMPLATE_FILES if self.manifest.file(n)})


def open_package(path: str | Path, *, weights_root: Path | None = None) -> Package:
    """Open the package in directory `path`.

    Args:
        path:         directory with datong.json.
        weights_root: where the files lie that are not in `path`; the cache gives it, nobody else.

    Raises:
        FormatVersionError, IntegrityError, ContainmentError, PackageError: what is wrong with it.
    """
    root = Path(path).expanduser().absolute()
    if not root.is_dir():
        raise PackageError("open", f"`{path}` should be a package directory, it {_what(root)}")
    if not (root / NAME).exists():
        raise PackageError("open", f"`{path}` has no {NAME}, so it is not a package yet", f"run: datong import {path}")
    data = read_bounded(resolve_inside(root, NAME, NAME), MAX_BYTES, NAME)
    manifest = decode(data, NAME)
    package = Package(root, weights_root or root, manifest, sha256(data))
    for entry in manifest.files:
        _check_file(package, entry)
    return package


def _what(path: Path) -> str:
    return "is a file" if path.exists() else "does not exist"


def _check_file(package: Package, entry: FileEntry) -> None:
    """Size, and for weights the header, of one listed file."""
    real = package.path(entry.path)
    size = real.stat().st_size
    if size != entry.size:
        raise IntegrityError(NAME, f"`{entry.path}` should have {entry.size} bytes, it has {size}", AGAIN)
    if entry.kind != "weights":
        return
    try:
        header = read_header(real)
    except CheckpointError as e:
        raise IntegrityError(entry.path, e.message, e.hint) from e
    if header.header_sha256 != entry.header_sha256:
        raise IntegrityError(NAME, f"the header of `{entry.path}` is not the one that was imported", AGAIN)
    package.headers[entry.path] = header
