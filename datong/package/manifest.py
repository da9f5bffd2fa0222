"""`datong.json`: the manifest of a package as typed structs, and its bytes. FORMAT.md says what each field means.

The bytes are deterministic: sorted keys, two spaces, one newline at the end. Reading is strict: an unknown key, a wrong
type or a value out of bounds is refused with its JSON path.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from datong.errors import FormatVersionError, PackageError
from datong.package.paths import check_relative

FORMAT_VERSION: Literal[1] = 1
NAME = "datong.json"
GRAPH = "graph.onnx"
MAX_BYTES = 64 << 20  # a manifest of a model with 100,000 ignored tensors is 10 MB

Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Positive = Annotated[int, Meta(ge=1, le=2**63 - 1)]
Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
Text = Annotated[str, Meta(max_length=4096)]
AttrValue = int | float | str | list[int | float | str]


class _Strict(Struct, forbid_unknown_fields=True, frozen=True):
    """Base: immutable, and no key beyond those declared."""


class ModelInfo(_Strict, frozen=True):
    """Which model this is."""

    name: Text
    family: Text  # datong/importer/models/<family>.py
    licence: Text | None  # as the checkpoint states it, an SPDX name where it does
    source: Text  # where the checkpoint came from: a name, never a path of the importing machine


class FileEntry(_Strict, frozen=True):
    """One file of the package. Every file is listed, but for datong.json itself."""

    path: Text  # relative, `/` between parts
    size: Count  # bytes
    kind: Literal["graph", "weights", "index", "config", "generation", "tokenizer", "template", "other"]
    header_sha256: Sha256 | None  # weights: of all bytes before the tensor data
    sha256: Sha256 | None  # of the whole content; None until sealed or hashed


class OperatorUse(_Strict, frozen=True):
    """How the graph uses one ONNX operator: what a chip must bring."""

    domain: Text  # empty: ai.onnx
    op: Text
    count: Positive
    inputs: list[str]  # per position the element types seen, `bf16|f32`; empty: never given
    outputs: list[str]
    attributes: dict[str, list[AttrValue]]  # name -> the values seen, in order


class OperatorSet(_Strict, frozen=True):
    """The requirement manifest: which operators, of which versions, on which types."""

    version: Positive  # datong/spec/ops.py
    onnx_opset: Positive
    onnx_ir: Positive
    operators: list[OperatorUse]
    functions: list[str]  # model-local functions, `domain:name`, with stock bodies


class FormatUse(_Strict, frozen=True):
    """The weights of one format (datong/spec/formats.py)."""

    format: Text
    weights: Count  # matrices and vectors
    parameters: Count  # logical elements
    bytes: Count


class Weights(_Strict, frozen=True):
    """The weights that the graph uses."""

    parameters: Count
    bytes: Count
    formats: list[FormatUse]


CacheKind = Literal["full", "window", "latent", "index", "recurrent", "conv"]  # spec/program.py, CacheSpec
_PER_SEQUENCE = ("recurrent", "conv")  # f32; the others are kept per token


class CacheEntry(_Strict, frozen=True):
    """What one layer remembers of each token, or of each sequence."""

    layer: Count
    kind: CacheKind
    kv_heads: Positive
    key_dim: Positive
    value_dim: Count
    window: Count  # tokens; 0: unlimited


class CacheUse(_Strict, frozen=True):
    """Memory of all layers of one kind: `layers * values_per_token * bytes of the cache type * min(tokens, window)`."""

    kind: CacheKind
    window: Count
    layers: Positive
    values_per_token: Positive  # of one layer: kv_heads * (key_dim + value_dim), kind `latent`: kv_heads * key_dim


class Memory(_Strict, frozen=True):
    """The memory formula; bytes of the weights, plus the caches, plus the state of each sequence."""

    weight_bytes: Count
    cache: list[CacheUse]
    state_bytes: Count  # of one sequence, whatever its length (recurrent and convolution state)


class Parallel(_Strict, frozen=True):
    """What can be cut over devices: a number of devices must divide these. None: not known."""

    heads: Positive | None
    kv_heads: Positive | None
    ffn: Positive | None


class TextHashes(_Strict, frozen=True):
    """Hashes of what turns text into ids and chats into text; equal hashes mean equal behaviour."""

    tokenizer_sha256: Sha256 | None  # of tokenizer.json
    chat_template_sha256: Sha256 | None  # of the template text, UTF-8, from whichever file holds it
    tool_call_format_sha256: Sha256 | None  # of the description of tool calls; None: none is carried


class Ignored(_Strict, frozen=True):
    """What the importer did not use, and why: name -> reason."""

    config_keys: dict[str, str]
    tensors: dict[str, str]


class Golden(_Strict, frozen=True):
    """One golden vector: after `ids`, teacher-forced, these tokens have the highest logits at `position`."""

    ids: Annotated[list[Count], Meta(min_length=1, max_length=4096)]
    position: Count
    tokens: Annotated[list[Count], Meta(min_length=1, max_length=64)]  # best first
    logits: Annotated[list[float], Meta(min_length=1, max_length=64)]
    backend: Text  # which backend computed them


class SpeculationHead(_Strict, frozen=True):
    """A head for speculation: `input_ids`, one ahead, and `hidden` -> `logits` of the token after, `hidden_out`."""

    graph: Text  # its file
    weight_bytes: Count  # of the weights that graph.onnx does not use
    caches: list[CacheEntry]


class Manifest(_Strict, frozen=True):
    """The whole of `datong.json`."""

    format_version: Literal[1]
    model: ModelInfo
    files: list[FileEntry]
    sealed: bool
    operator_set: OperatorSet
    weights: Weights
    memory: Memory
    context_length: Positive
    vocab_size: Positive
    caches: list[CacheEntry]
    parallel: Parallel
    text: TextHashes
    ignored: Ignored
    goldens: list[Golden]
    speculation: list[SpeculationHead] = []  # in order, each guesses one token further

    def file(self, path: str) -> FileEntry | None:
        """The entry of one file; None when it is not listed."""
        return next((f for f in self.files if f.path == path), None)

    def cache_bytes(self, tokens: int, value_bytes: int) -> int:
        """Bytes of all caches of one sequence of `tokens` tokens, `value_bytes` per cached number."""
        per_kind = (
            use.layers * use.values_per_token * (min(tokens, use.window) if use.window else tokens)
            for use in self.memory.cache
        )
        return sum(per_kind) * value_bytes


class _Version(Struct):
    format_version: int | None = None


_ENCODER = msgspec.json.Encoder(order="sorted")
_DECODER = msgspec.json.Decoder(Manifest)
_VERSION = msgspec.json.Decoder(_Version)


def encode(manifest: Manifest) -> bytes:
    """The bytes of `datong.json`; the same manifest gives the same bytes."""
    return msgspec.json.format(_ENCODER.encode(manifest), indent=2) + b"\n"


def decode(data: bytes, where: str) -> Manifest:
    """Read and check `datong.json`.

    Raises FormatVersionError for a newer format, PackageError (with the JSON path) for anything else that is wrong,
    ContainmentError for a file that lies outside.
    """
    if len(data) > MAX_BYTES:
        raise PackageError(where, f"a manifest has at most {MAX_BYTES} bytes, this one has {len(data)}")
    try:
        version = _VERSION.decode(data).format_version
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
        raise PackageError(where, f"the manifest should be a JSON object with `format_version`; {_said(e)}") from None
    if version is None:
        raise PackageError(where, "`format_version` is missing from the manifest", "this may not be a Datong package")
    if version != FORMAT_VERSION:
        raise FormatVersionError(
            where,
            f"this Datong reads package format {FORMAT_VERSION}, the package has format {version}",
            "upgrade Datong (`pip install -U datong`), or import the model again" if version > FORMAT_VERSION else None,
        )
    try:
        manifest = _DECODER.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
        raise PackageError(where, f"the manifest does not follow the format: {_said(e)}") from None
    check(manifest, where)
    return manifest


def _said(error: Exception) -> str:
    """An error of msgspec as the tail of our sentence."""
    text = " ".join(str(error).split()) or type(error).__name__  # names in it may hold line breaks
    return text if text[:2].isupper() else text[0].lower() + text[1:]


def check(manifest: Manifest, where: str) -> None:
    """What types cannot say: unique contained paths, one graph, sums that add up. Raises PackageError."""
    seen: set[str] = set()
    for i, entry in enumerate(manifest.files):
        check_relative(entry.path, where)
        if entry.path in seen or entry.path == NAME:
            raise PackageError(where, f"every file is listed once and {NAME} is not, `$.files[{i}]` is `{entry.path}`")
        if (entry.kind == "weights") != (entry.header_sha256 is not None):
            raise PackageError(where, f"weights and only they have `header_sha256`, `$.files[{i}]` breaks that")
        seen.add(entry.path)
    graphs = sorted([GRAPH, *(head.graph for head in manifest.speculation)])
    if sorted(f.path for f in manifest.files if f.kind == "graph") != graphs:
        raise PackageError(where, f"the files of kind `graph` should be {', '.join(f'`{g}`' for g in graphs)}")
    if manifest.sealed and any(f.sha256 is None for f in manifest.files):
        raise PackageError(where, "a sealed package has a `sha256` for every file, here one is missing")
    _check_sums(manifest, where)
    for i, golden in enumerate(manifest.goldens):
        good = (
            golden.position < len(golden.ids)
            and len(golden.tokens) == len(golden.logits)
            and max((*golden.ids, *golden.tokens)) < manifest.vocab_size
        )
        if not good:
            raise PackageError(
                where, f"a golden vector names positions and tokens that exist, `$.goldens[{i}]` does not"
            )


def _check_sums(manifest: Manifest, where: str) -> None:
    weights, memory = manifest.weights, manifest.memory
    if sum(f.bytes for f in weights.formats) != weights.bytes or memory.weight_bytes != weights.bytes:
        raise PackageError(
            where, "`$.weights.bytes`, the sum over its formats and `$.memory.weight_bytes` should be equal"
        )
    if sum(f.parameters for f in weights.formats) != weights.parameters:
        raise PackageError(where, "`$.weights.parameters` should be the sum over its formats")
    layers = [(c.layer, c.kind) for c in manifest.caches]
    if len(set(layers)) != len(layers):
        raise PackageError(where, "`$.caches` should name each layer once, and kind of cache")
    if any((c.kind == "window") != (c.window > 0) for c in manifest.caches):
        raise PackageError(where, "a cache of kind `window` has a window, those of other kinds have none")
    if summarise(manifest.caches) != memory.cache:
        raise PackageError(where, "`$.memory.cache` should be the sum of `$.caches`")
    if state_bytes(manifest.caches) != memory.state_bytes:
        raise PackageError(where, "`$.memory.state_bytes` should be the sum over the caches per sequence")


def summarise(caches: Iterable[CacheEntry]) -> list[CacheUse]:
    """Caches of the same kind, window and width, counted; in a fixed order. Those per sequence are left out."""
    counts: dict[tuple[CacheKind, int, int], int] = {}
    for cache in caches:
        if cache.kind not in _PER_SEQUENCE:
            values = cache.key_dim + (0 if cache.kind == "latent" else cache.value_dim)
            key = (cache.kind, cache.window, cache.kv_heads * values)
            counts[key] = counts.get(key, 0) + 1
    return [CacheUse(kind, window, n, width) for (kind, window, width), n in sorted(counts.items())]


def state_bytes(caches: Iterable[CacheEntry]) -> int:
    """Bytes of the caches per sequence, for one sequence."""
    return 4 * sum(c.kv_heads * c.key_dim * c.value_dim for c in caches if c.kind in _PER_SEQUENCE)


def schema() -> dict[str, Any]:
    """The JSON Schema of `datong.json`; `datong/spec/manifest_schema.json` is this, and a test says so."""
    made = msgspec.json.schema(Manifest)
    made["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    made["title"] = "datong.json, format version 1"
    return made


def schema_bytes() -> bytes:
    """The bytes of `datong/spec/manifest_schema.json`."""
    text = msgspec.json.format(msgspec.json.encode(schema(), order="sorted"), indent=2)
    return re.sub(rb"[ \t]+\n", b"\n", text) + b"\n"
