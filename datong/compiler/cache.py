"""Compiled plans are kept, so that a second start imports no ONNX and compiles nothing.

    key = sha256 of: plan version, hash of graph.onnx, where the weights lie, context length, splits, strict, fuse
          and hidden, and of each backend its name, interface version and fusions

A kept plan is made again when it cannot be read, when its weights are not in their files any more, and when a backend
answers otherwise than it did (a driver or a kernel was added or lost): it is asked about each node again, which takes
10 ms for 30 layers. Plans lie under the cache directory (env.py); one that cannot be written costs time, nothing else.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import msgspec

from datong import env
from datong.compiler import files, plan
from datong.errors import CompileError, PackageError
from datong.importer.digest import sha256
from datong.package.manifest import GRAPH
from datong.package.reader import Package
from datong.spec.backend import Backend
from datong.spec.ops import OPSET_VERSION
from datong.spec.program import Program


def cached_program(
    package: Package,
    backends: Sequence[Backend],
    *,
    splits: Sequence[int] = (),
    strict: bool = False,
    fuse: bool = True,
    graph: str = GRAPH,
    hidden: bool = False,
) -> Program:
    """The program of a package for `backends`, best first: kept, or compiled and kept. Raises as compile_package."""
    path = plan_path(package, backends, splits=splits, strict=strict, fuse=fuse, graph=graph, hidden=hidden)
    kept = _read(path)
    if kept is not None and _answers_hold(kept, backends):
        return _with_graph(kept, package, graph)
    from datong.compiler.pipeline import compile_package  # imports onnx_ir, a second that the warm path saves

    program = compile_package(package, backends, splits=splits, strict=strict, fuse=fuse, graph=graph, hidden=hidden)
    _write(path, plan.to_json(program))
    return _with_graph(program, package, graph)


def _with_graph(program: Program, package: Package, graph: str) -> Program:
    """A program of one part knows the graph it is the whole of. Not kept: the same plan serves a copy elsewhere."""
    if len(program.parts) != 1:
        return program
    return replace(program, parts=(replace(program.parts[0], graph=str(package.root / graph)),))


def plan_path(
    package: Package,
    backends: Sequence[Backend],
    *,
    splits: Sequence[int] = (),
    strict: bool,
    fuse: bool,
    graph: str = GRAPH,
    hidden: bool = False,
) -> Path:
    """Where the plan lies, or would. Raises PackageError when the graph cannot be read."""
    try:
        content = sha256((package.root / graph).read_bytes())
    except OSError as error:
        raise PackageError("compile", f"`{graph}` of the package cannot be read: {error.strerror}") from error
    facts = [
        plan.FORMAT,
        plan.VERSION,
        OPSET_VERSION,
        content,
        str(package.weights_root.absolute()),
        package.manifest.context_length,
        list(splits),
        strict,
        fuse,
        [[b.name, list(b.api_version), sorted(b.fusions())] for b in backends],
        *(["hidden"] if hidden else []),
    ]
    return env.cache_dir() / "plans" / f"{sha256(msgspec.json.encode(facts))}.json"


def _read(path: Path) -> Program | None:
    """The kept program, None if there is none that can be used."""
    try:
        program = plan.from_json(path.read_bytes())
        pieces = (p for part in program.parts for value in part.values.values() for p in value.pieces)
        files.check_pieces(Path(program.package), pieces)
    except (OSError, CompileError, PackageError):
        return None
    return program


def _answers_hold(program: Program, backends: Sequence[Backend]) -> bool:
    """Do the backends still take the nodes that they took, and refuse those that they refused?"""
    by_name = {backend.name: backend for backend in backends}
    placed = {node.name: (part, node) for part in program.parts for node in part.nodes}
    for part, node in placed.values():
        owner = by_name.get(part.backend)
        if owner is None or not owner.supports(node, part.values):
            return False
    for name, node_name, _ in program.refusals:
        if node_name in placed and name in by_name:  # refused fusions are in no part
            part, node = placed[node_name]
            if by_name[name].supports(node, part.values):
                return False
    return True


def _write(path: Path, data: bytes) -> None:
    """Keep the plan: a temporary file in the same directory, then a rename, so that no half plan is ever seen."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        import tempfile  # 4 ms that the warm path saves

        handle, name = tempfile.mkstemp(prefix=".plan-", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            os.replace(name, path)
        except OSError:
            os.unlink(name)
            raise
