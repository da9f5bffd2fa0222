"""The manifest of an import: derived from the graph, the weight map and the files. Reads no weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from onnx import ModelProto

from datong.errors import CheckpointError
from datong.importer.weights import WeightMap
from datong.package import graph
from datong.package.manifest import (
    FORMAT_VERSION,
    CacheEntry,
    CacheKind,
    FileEntry,
    FormatUse,
    Ignored,
    Manifest,
    Memory,
    ModelInfo,
    OperatorSet,
    Parallel,
    SpeculationHead,
    Weights,
    state_bytes,
    summarise,
)
from datong.package.texts import text_hashes
from datong.spec.program import CacheSpec

if TYPE_CHECKING:
    from datong.importer.imported import Imported


def manifest_of(
    imported: Imported, proto: ModelProto, files: Sequence[FileEntry], texts: Mapping[str, bytes]
) -> Manifest:
    """The manifest. `files` are all files of the package; `texts` the contents of the small ones, by path.

    Raises CheckpointError when the import left a tensor over or used none.
    """
    left = sorted(imported.weights.left_over())
    if left:
        raise CheckpointError(
            "import",
            f"every tensor must be used or ignored with a reason, {len(left)} are neither: `{left[0]}`",
            "the checkpoint is not what its config says, or the model family lacks a part",
        )
    weights = _weights(imported.weights, frozenset().union(*(head.weights for head in imported.heads)))
    operators = graph.requirements(proto)
    caches = _caches(imported.caches)
    return Manifest(
        format_version=FORMAT_VERSION,
        model=ModelInfo(imported.name, imported.family, imported.licence, _source(imported.source)),
        files=sorted(files, key=lambda f: f.path),
        sealed=False,
        operator_set=operators,
        weights=weights,
        memory=Memory(weights.bytes, summarise(caches), state_bytes(caches)),
        context_length=imported.context_length,
        vocab_size=imported.vocab_size,
        caches=caches,
        parallel=_parallel(operators, imported.config),
        text=text_hashes(texts),
        ignored=Ignored(dict(imported.ignored_keys), dict(imported.weights.ignored)),
        goldens=[],
        speculation=[
            SpeculationHead(head_file(i), _bytes(imported.weights, head.weights), _caches(head.caches))
            for i, head in enumerate(imported.heads)
        ],
    )


def _caches(specs: Iterable[CacheSpec]) -> list[CacheEntry]:
    return [
        CacheEntry(c.layer, cast(CacheKind, c.kind), c.kv_heads, c.key_dim, c.value_dim, c.window)
        for c in sorted(specs, key=lambda c: (c.layer, c.kind))
    ]


def head_file(number: int) -> str:
    """The file of the graph of a head for speculation."""
    return f"speculation.{number}.onnx"


def _bytes(found: WeightMap, names: Iterable[str]) -> int:
    return sum(piece.length for name in names for piece in found.weights[name].pieces.values())


def _source(source: str) -> str:
    """Without the directories of the machine that imported: they would change the bytes and tell tales."""
    return Path(source).name if source.startswith(("/", "~", ".")) else source


def _weights(found: WeightMap, besides: frozenset[str]) -> Weights:
    """Count the weights that graph.onnx took, by format; `besides`: those that only heads for speculation use."""
    rows: dict[str, list[int]] = {}
    for name in sorted(found.taken - besides):
        weight = found.weights[name]
        row = rows.setdefault(weight.format.name, [0, 0, 0])
        row[0] += 1
        row[1] += math.prod(weight.shape)
        row[2] += sum(piece.length for piece in weight.pieces.values())
    formats = [FormatUse(name, *row) for name, row in sorted(rows.items())]
    return Weights(sum(f.parameters for f in formats), sum(f.bytes for f in formats), formats)


def _parallel(operators: OperatorSet, config: Mapping[str, Any]) -> Parallel:
    """Dims along which every layer can be cut: the greatest common divisor over the layers."""

    def heads(attribute: str) -> int | None:
        counts = [
            v
            for use in operators.operators
            if use.op == "Attention" and use.domain == ""
            for v in use.attributes.get(attribute, [])
            if isinstance(v, int) and v > 0
        ]
        return math.gcd(*counts) if counts else None

    ffn = config.get("intermediate_size")
    width = ffn if type(ffn) is int and ffn > 0 else None
    return Parallel(heads("q_num_heads"), heads("kv_num_heads"), width)
