"""The small files of a package by name: their kinds, and the hashes of those that turn text into ids and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from datong.importer.digest import sha256
from datong.importer.texts import TEMPLATE_FILES, json_object, template_of
from datong.package.manifest import TextHashes

__all__ = ["MAX_BYTES", "TEMPLATE_FILES", "json_object", "kind_of", "template_of", "text_hashes"]

MAX_BYTES = 256 << 20  # of one text file; the largest tokenizer.json seen is 35 MB

Kind = Literal["graph", "weights", "index", "config", "generation", "tokenizer", "template", "other"]

_KINDS: dict[str, Kind] = {
    "graph.onnx": "graph",
    "config.json": "config",
    "generation_config.json": "generation",
    "chat_template.jinja": "template",
    "chat_template.json": "template",
    "dialogue.json": "template",
    "special_tokens_map.json": "tokenizer",
    "added_tokens.json": "tokenizer",
    "vocab.json": "tokenizer",
    "vocab.txt": "tokenizer",
    "merges.txt": "tokenizer",
}


def kind_of(path: str) -> Kind:
    """What a file is, by its name."""
    if path in _KINDS:
        return _KINDS[path]
    if path.startswith("speculation.") and path.endswith(".onnx"):
        return "graph"
    if path.endswith(".safetensors"):
        return "weights"
    if path.endswith(".index.json"):
        return "index"
    if "/" not in path and (path.startswith("tokenizer") or path.endswith((".model", ".tiktoken"))):
        return "tokenizer"
    return "other"


def text_hashes(texts: Mapping[str, bytes]) -> TextHashes:
    """Hashes of tokenizer, chat template and tool-call format, from whichever files carry them."""
    tokenizer, tool_calls = texts.get("tokenizer.json"), texts.get("dialogue.json")
    template = template_of(texts)
    return TextHashes(
        sha256(tokenizer) if tokenizer is not None else None,
        sha256(template.encode()) if template is not None else None,
        sha256(tool_calls) if tool_calls is not None else None,
    )
