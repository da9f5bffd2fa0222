"""The chat template of a checkpoint, in whichever of its small files it is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from datong.errors import PackageError

TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json", "tokenizer_config.json")  # the first that has one wins


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
