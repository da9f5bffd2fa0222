"""What an importer hands over: a graph, where its weights lie, and what else belongs into the package."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from datong.dtypes import DType
from datong.importer.models.decoder import BuiltHead
from datong.importer.weights import WeightMap
from datong.spec.program import CacheSpec

Progress = Callable[[str, int, int], None]  # (what, done, total) in bytes or items; called often, must be cheap


@dataclass(frozen=True)
class PendingTensor:
    """A tensor that the package writer puts into `model.safetensors`; `read` yields its bytes in chunks."""

    name: str
    dtype: DType
    shape: tuple[int, ...]  # as safetensors stores it: 4-bit tensors are U8 with the last dim halved
    length: int
    read: Callable[[], Iterator[bytes]]


@dataclass
class Imported:
    """A checkpoint, understood. Nothing has been written yet."""

    model: ir.Model  # inputs and outputs as docs/package: input_ids, position_ids, past_key_values.N.key …
    family: str  # importer/models/<family>.py
    name: str
    source: str  # where it came from, for the manifest
    licence: str | None
    config: dict[str, Any]  # config.json as read, or made from GGUF metadata
    weights: WeightMap
    caches: tuple[CacheSpec, ...]  # one per attention layer
    vocab_size: int
    context_length: int
    ignored_keys: dict[str, str] = field(default_factory=dict)  # config key -> reason
    files: tuple[str, ...] = ()  # files of the source directory that belong to the package
    generated: dict[str, bytes] = field(default_factory=dict)  # files to write: config.json, tokenizer.json …
    heads: tuple[BuiltHead, ...] = ()  # for speculation, each a graph of its own
    tensors: tuple[PendingTensor, ...] = ()  # for model.safetensors, in file order; empty when imported in place
