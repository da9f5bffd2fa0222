"""The small files beside the weights that a Hugging Face directory has and a GGUF file holds as metadata."""

from __future__ import annotations

import json
import re
from typing import Any

from datong.errors import ConfigError, TokenizerError
from datong.importer.gguf.keys import Keys
from datong.importer.gguf.tokenizer import Vocabulary

# recommended sampler settings: key under `general.sampling.` -> generation_config.json
_SAMPLING = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
}


def to_json(content: dict[str, Any]) -> bytes:
    """As transformers writes its files: two spaces, sorted."""
    return (json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def generation_config(keys: Keys, vocabulary: Vocabulary) -> dict[str, Any]:
    """Where an answer ends, and the sampler settings that the publisher recommends."""
    config: dict[str, Any] = {}
    ends = list(dict.fromkeys(vocabulary.roles[r] for r in ("eos", "eot", "eom") if r in vocabulary.roles))
    if ends:
        config["eos_token_id"] = ends[0] if len(ends) == 1 else ends
    for role, name in (("bos", "bos_token_id"), ("padding", "pad_token_id")):
        if role in vocabulary.roles:
            config[name] = vocabulary.roles[role]
    keys = keys.raising(ConfigError)
    for key, name in _SAMPLING.items():
        if keys.has(f"general.sampling.{key}"):
            value = keys.number(f"general.sampling.{key}")
            config[name] = int(value) if name == "top_k" else value
            config["do_sample"] = True
    return config


def tokenizer_config(keys: Keys, vocabulary: Vocabulary, context_length: int) -> dict[str, Any]:
    """tokenizer_config.json: roles of tokens, chat template. transformers opens the directory with it."""
    keys = keys.raising(TokenizerError)
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context_length,
        "clean_up_tokenization_spaces": False,
        "add_bos_token": vocabulary.add_bos,
        "add_eos_token": vocabulary.add_eos,
    }
    for role, name in (("bos", "bos_token"), ("eos", "eos_token"), ("unknown", "unk_token"), ("padding", "pad_token")):
        if role in vocabulary.roles:
            config[name] = vocabulary.text(role)
    if keys.has("tokenizer.chat_template"):
        config["chat_template"] = keys.text("tokenizer.chat_template")
    return config


def extra_templates(keys: Keys) -> dict[str, bytes]:
    """Named chat templates beside the usual one, as files `additional_chat_templates/<name>.jinja`."""
    keys, found = keys.raising(TokenizerError), {}
    for key in keys.values:
        match = re.fullmatch(r"tokenizer\.chat_template\.([A-Za-z0-9_-]{1,64})", key)
        if match:
            found[f"additional_chat_templates/{match[1]}.jinja"] = keys.text(key).encode()
    if keys.has("tokenizer.chat_templates"):  # only repeats their names
        keys.strings("tokenizer.chat_templates")
    return found
