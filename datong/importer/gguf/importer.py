"""A GGUF file -> Imported: the directory it would be on the hub, with the weights' bits kept and moved.

metadata  -> config.json, generation_config.json, tokenizer_config.json
tokens    -> tokenizer.json
tensors   -> model.safetensors: per block-quantised matrix its codes, scales and mins (spec/formats.py); rows of q
             and k in Hugging Face order. Only laid out here: the package writer streams the bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from datong.dtypes import DType
from datong.errors import CheckpointError
from datong.importer import layout
from datong.importer.dialogue.choose import dialogue_file
from datong.importer.gguf import blocks, metadata, names, sidecars
from datong.importer.gguf.keys import Keys
from datong.importer.gguf.reader import GgufFile, GgufTensor, read_gguf
from datong.importer.gguf.tokenizer import read_vocabulary, rebuild_tokenizer
from datong.importer.imported import Imported, PendingTensor, Progress
from datong.importer.registry import build_model
from datong.importer.texts import template_of
from datong.importer.weights import StoredTensor, Weight, WeightMap
from datong.spec.formats import Format

WEIGHTS = "model.safetensors"  # the package writer puts pending tensors there


def import_gguf(src: Path, progress: Progress | None = None) -> Imported:
    """Understand the GGUF file `src`; nothing is written, and of the weights only `rope_freqs.weight` is read.

    Raises:
        CheckpointError: the file is damaged, split, or has tensors of a type or name that is not carried.
        UnknownModel: no builder for the architecture.
        ConfigError: a key is missing, contradictory, or not known.
        TokenizerError: a field that the tokenizer needs is missing or wrong.
    """
    tell = progress or (lambda what, done, total: None)
    tell("read metadata", 0, 3)
    file = read_gguf(src)
    keys = Keys(file.values, src.name)
    metadata.check_single(keys)
    config = metadata.build_config(file, keys)
    tell("rebuild tokenizer", 1, 3)
    vocabulary = read_vocabulary(keys, config["vocab_size"])
    generated = {
        "config.json": sidecars.to_json(config),
        "generation_config.json": sidecars.to_json(sidecars.generation_config(keys, vocabulary)),
        "tokenizer.json": rebuild_tokenizer(keys, vocabulary),
        "tokenizer_config.json": sidecars.to_json(
            sidecars.tokenizer_config(keys, vocabulary, config["max_position_embeddings"])
        ),
        **sidecars.extra_templates(keys),
    }
    name, licence = keys.title("general.name", src.stem), keys.title("general.license", "") or None
    tell("build graph", 2, 3)
    sources = layout.file_order(_sources(file, config, metadata.architecture(keys), src.name))
    weights = _weight_map(sources)
    built = build_model(config, weights)
    generated |= dialogue_file(template_of(generated), built.family)
    tell("build graph", 3, 3)
    return Imported(
        model=built.model,
        family=built.family,
        name=name,
        source=_origin(keys, src),
        licence=licence,
        config=config,
        weights=weights,
        caches=built.caches,
        vocab_size=built.vocab_size,
        context_length=built.context_length,
        ignored_keys={**built.ignored_keys, **metadata.ignored_keys(keys)},
        generated=generated,
        tensors=tuple(s.pending(file) for s in sources),
    )


def _origin(keys: Keys, src: Path) -> str:
    """The file's name and, where it says so, the page of the model that it was made from; no path of this machine."""
    pages = (keys.title(f"general.{key}", "") for key in ("source.repo_url", "source.url", "repo_url", "url"))
    page = next(filter(None, pages), "")
    return f"gguf:{src.name} of {page}" if page else f"gguf:{src.name}"


@dataclass(frozen=True)
class _Source:
    """One tensor of the file to be written, and where its bytes come from."""

    weight: str  # Hugging Face name
    piece: str
    tensor: GgufTensor
    order: npt.NDArray[np.intp] | None  # of rows; see names.py

    @property
    def format(self) -> Format:
        assert self.tensor.type.format is not None  # check_carried
        return self.tensor.type.format

    @property
    def name(self) -> str:
        return self.weight if self.piece == "codes" else f"{self.weight}.{self.piece}"

    @property
    def dtype(self) -> DType:
        return self.format.piece_dtype(self.piece)

    @property
    def values(self) -> tuple[int, ...]:
        """Shape in values."""
        if len(self.tensor.shape) != 2:
            return self.tensor.shape
        return self.format.piece_shape(self.piece, *self.tensor.shape)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape as safetensors stores it: 4-bit values two to a byte."""
        *outer, last = self.values
        return (*outer, last * self.dtype.bits // 8) if self.dtype.bits < 8 else self.values

    @property
    def length(self) -> int:
        return self.dtype.nbytes(int(np.prod(self.values, dtype=np.int64)))

    def pending(self, file: GgufFile) -> PendingTensor:
        def read() -> Iterator[bytes]:
            return blocks.stream_piece(file, self.tensor, self.piece, self.order)

        return PendingTensor(self.name, self.dtype, self.shape, self.length, read)


def _sources(file: GgufFile, config: dict[str, Any], arch: metadata.Architecture, where: str) -> list[_Source]:
    """All pieces of all weights, in the order in which the model uses them."""
    found = []
    for tensor in sorted(file.tensors.values(), key=lambda t: names.model_order(t.name)):
        if tensor.name == names.ROPE_FREQS:  # already in the config
            continue
        name = names.hf_name(tensor.name)
        if name is None:
            raise CheckpointError(
                where,
                f"tensor `{tensor.name}` is not known for model_type `{config['model_type']}`",
                "the model computes something that Datong has no builder for",
            )
        blocks.check_carried(tensor, where)
        form = tensor.type.format
        if form is not None and form.block and len(tensor.shape) != 2:
            raise CheckpointError(
                where,
                f"tensor `{tensor.name}` {list(tensor.shape)} should be a matrix, to be stored as {tensor.type.name}",
            )
        order = _order(tensor, config, where) if arch.permuted else None
        found += [_Source(name, piece, tensor, order) for piece in (form.pieces if form else ())]
    return found


def _order(tensor: GgufTensor, config: dict[str, Any], where: str) -> npt.NDArray[np.intp] | None:
    heads = names.permuted_heads(tensor.name, config["num_attention_heads"], config["num_key_value_heads"])
    if not heads:
        return None
    rows = heads * config["head_dim"]  # a claim of the metadata: checked before anything of that size is made
    if rows != tensor.shape[0]:
        raise CheckpointError(
            where,
            f"tensor `{tensor.name}` should have {rows} rows ({heads} heads of {config['head_dim']}), "
            f"it has {tensor.shape[0]}",
        )
    return names.row_order(heads, config["head_dim"])


def _weight_map(sources: list[_Source]) -> WeightMap:
    """Under their Hugging Face names, at the offsets that they will have."""
    places = layout.offsets(sources)
    weights: dict[str, Weight] = {}
    for s in sources:
        weight = weights.setdefault(s.weight, Weight(s.weight, s.format, s.tensor.shape, {}))
        weight.pieces[s.piece] = StoredTensor(s.name, s.dtype, s.values, WEIGHTS, places[s.name], s.length)
    return WeightMap(weights)
