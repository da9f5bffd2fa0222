"""The small files of a package by name: their kinds, the JSON in them, where the chat template is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

from datong.errors import PackageError
from datong.importer.digest import sha256
from datong.package.manifest import TextHashes

MAX_BYTES = 256 << 20  # of one text file; the largest tokenizer.json seen is 35 MB

Kind = Literal["graph", "weights", "index", "config", "generation", "tokenizer", "template", "other"]

_KINDS: dict[str, Kind] = {
    "graph.onnx": "graph",
    "config.json": "config",
    "generation_config.json": "generation",
    "chat_template.jinja": "template",
    "chat_template.json": "template",
    "special_tokens_map.json": "tokenizer",
    "added_tokens.json": "tokenizer",
    "vocab.json": "tokenizer",
    "vocab.txt": "tokenizer",
    "merges.txt": "tokenizer",
}


TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json", "tokenizer_config.json")  # the first that has one wins


def kind_of(path: str) -> Kind:
    """What a file is, by its name."""
    if path in _KINDS:
        return _KINDS[path]
    if path.endswith(".safetensors"):
        return "weights"
    if path.endswith(".index.json"):
        return "index"
    if "/" not in path and (path.startswith("tokenizer") or path.endswith((".model", ".tiktoken"))):
        return "tokenizer"
    return "other"


def text_hashes(texts: Mapping[str, bytes]) -> TextHashes:
    """Hashes of tokenizer and chat template, from whichever files carry them."""
    tokenizer = texts.get("tokenizer.json")
    template = template_of(texts)
    return TextHashes(
        sha256(tokenizer) if tokenizer is not None else None,
        sha256(template.encode()) if template is not None else None,
        None,
    )


def template_of(texts: Mapping[str, bytes]) -> str | None:
    """The chat template: `chat_template.jinja`, else what the JSON files carry; None when there is none.

    Newer checkpoints have the file, older ones the key `chat_template` in tokenizer_config.json: a string, or a list of
    `{"name", "template"}` of which `default` counts.
    """
    if "chat_template.jinja" in texts:
        return _utf8(texts["chat_template.jinja"], "chat_template.jinja")
    for name in TEMPLATE_FILES[1:]:
        if name not in texts:
            continue
        value = json_object(texts[name], name).get("chat_template")
        if isinstance(value, list):
            named = {t.get("name"): t.get("template") for t in value if isinstance(t, dict)}
            value = named.get("default")
        if isinstance(value, str):
            return value
    return None


def _utf8(data: bytes, name: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as e:
        raise PackageError(name, f"the file should be UTF-8 text, byte {e.start} is not") from None


def json_object(data: bytes, name: str) -> dict[str, Any]:
    """The JSON object in `data`. Raises PackageError for anything else."""
    try:
        value = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as e:
        raise PackageError(name, f"the file should be a JSON object: {e}") from None
    if not isinstance(value, dict):
        raise PackageError(name, f"the file should be a JSON object, it is {type(value).__name__}")
    return value
