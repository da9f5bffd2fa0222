"""A tokenizer.json from GGUF metadata, with the ids that the original tokenizer gives.

    tokenizer.ggml.model = gpt2    byte-level BPE: vocabulary in the byte alphabet, merges as a list, words cut as
                                   `tokenizer.ggml.pre` says (pretokenizers.py)
    tokenizer.ggml.model = llama   SentencePiece BPE: merges follow from the scores, `▁` is a space, unknown
                                   characters become bytes `<0x..>`

Types of tokens: normal, unknown, control, user-defined, unused, byte (1 to 6). Control and user-defined tokens are
matched in the text before anything else; control ones are `special`, so that a detokenizer can skip them. GGUF does not
keep whether the original called them so: llama.cpp's converter marks `<|..|>` as control in any case.

All tokens go into the vocabulary, added ones too, because the tokenizers library numbers a token that it does not
find there by its own count.
Source: llama.cpp conversion/base.py `get_vocab_base`, src/llama-vocab.cpp; transformers convert_slow_tokenizer.py.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from datong.errors import TokenizerError
from datong.importer.gguf.keys import Keys, describe
from datong.importer.gguf.pretokenizers import TABLE

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
SPACE = "▁"
_BYTES = [f"<0x{b:02X}>" for b in range(256)]


@dataclass(frozen=True)
class Vocabulary:
    """Tokens by id, with their types, and the ids that have a role."""

    tokens: list[str]
    types: list[int]
    ids: dict[str, int]
    roles: dict[str, int]  # bos, eos, unknown, padding, eot, eom …: only those that the file states
    add_bos: bool
    add_eos: bool

    def text(self, role: str) -> str | None:
        """The token that has this role, if the file says so."""
        return self.tokens[self.roles[role]] if role in self.roles else None


_ROLES = ("bos", "eos", "unknown", "padding", "eot", "eom")


def read_vocabulary(keys: Keys, vocab_size: int) -> Vocabulary:
    """The tokens of the file, checked. Raises TokenizerError for a missing or contradictory field."""
    keys = keys.raising(TokenizerError)
    model, pre = keys.word("tokenizer.ggml.model"), keys.word("tokenizer.ggml.pre", "")
    if model not in ("gpt2", "llama"):
        raise keys.fail(f"`tokenizer.ggml.model` should be `gpt2` or `llama`, it is `{model}`")
    tokens = [t or f"[EMPTY_{i}]" for i, t in enumerate(keys.strings("tokenizer.ggml.tokens"))]
    if len(tokens) != vocab_size:
        raise keys.fail(f"`tokenizer.ggml.tokens` has {len(tokens)} tokens, the model's vocabulary has {vocab_size}")
    if keys.word("general.architecture", "") == "internlm2" and "🐉" in tokens:
        tokens[tokens.index("🐉")] = "\0"  # the converter's stand-in: a C string cannot hold the original
    types = [int(t) for t in keys.numbers("tokenizer.ggml.token_type", len(tokens))]
    ids: dict[str, int] = {}
    for index, token in enumerate(tokens):
        if ids.setdefault(token, index) != index:
            raise keys.fail(f"token {describe(token)} has two ids in `tokenizer.ggml.tokens`: {ids[token]} and {index}")
    roles = {}
    for role in _ROLES:
        key = f"tokenizer.ggml.{role}_token_id"
        if keys.has(key):
            roles[role] = keys.integer(key)
            if roles[role] >= len(tokens):
                raise keys.fail(f"`{key}` is {roles[role]}, the vocabulary has {len(tokens)} tokens")
    bos_default = model == "llama" or (pre in TABLE and TABLE[pre].add_bos)
    add_bos = keys.flag("tokenizer.ggml.add_bos_token", bos_default)
    add_eos = keys.flag("tokenizer.ggml.add_eos_token", False)
    for add, role in ((add_bos, "bos"), (add_eos, "eos")):
        if add and role not in roles:
            raise keys.fail(f"key `tokenizer.ggml.{role}_token_id` is missing, but texts are to begin or end with it")
    return Vocabulary(tokens, types, ids, roles, add_bos, add_eos)


def rebuild_tokenizer(keys: Keys, vocabulary: Vocabulary) -> bytes:
    """The bytes of tokenizer.json, which the tokenizers library has accepted. Raises TokenizerError."""
    keys = keys.raising(TokenizerError)
    parts = (
        _byte_level(keys, vocabulary)
        if keys.word("tokenizer.ggml.model") == "gpt2"
        else _sentencepiece(keys, vocabulary)
    )
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(vocabulary),
        "normalizer": parts["normalizer"],
        "pre_tokenizer": parts["pre_tokenizer"],
        "post_processor": _post_processor(vocabulary),
        "decoder": parts["decoder"],
        "model": parts["model"],
    }
    data = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
    _check(data, vocabulary, keys)
    return data


def _byte_level(keys: Keys, vocabulary: Vocabulary) -> dict[str, Any]:
    name = keys.word("tokenizer.ggml.pre")
    pre = TABLE.get(name)
    if pre is None:
        raise keys.fail(
            f"`tokenizer.ggml.pre` is `{name}`, for which no rule to cut text into words is known",
            f"known: {', '.join(TABLE)}",
        )
    merges = []
    for index, merge in enumerate(keys.strings("tokenizer.ggml.merges")):
        head, _, right = merge[1:].partition(" ")  # the first character may itself be a space
        left = merge[:1] + head
        if left not in vocabulary.ids or right not in vocabulary.ids or left + right not in vocabulary.ids:
            raise keys.fail(
                f"`tokenizer.ggml.merges` {index} is {describe(merge)}, which joins or makes tokens that do not exist"
            )
        merges.append([left, right])
    return {
        "normalizer": pre.normalizer(),
        "pre_tokenizer": pre.steps(),
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": _bpe(vocabulary, merges, ignore_merges=pre.ignore_merges),
    }


def _sentencepiece(keys: Keys, vocabulary: Vocabulary) -> dict[str, Any]:
    prefix = keys.flag("tokenizer.ggml.add_space_prefix", True)
    scores = [float(s) for s in keys.numbers("tokenizer.ggml.scores", len(vocabulary.tokens))]
    if not np.isfinite(scores).all():
        raise keys.fail("`tokenizer.ggml.scores` should be finite numbers")
    fallback = all(b in vocabulary.ids for b in _BYTES)
    unknown = vocabulary.text("unknown") or next(
        (t for t, kind in zip(vocabulary.tokens, vocabulary.types, strict=True) if kind == UNKNOWN), None
    )
    if unknown is None and not fallback:
        raise keys.fail(
            "key `tokenizer.ggml.unknown_token_id` is missing, and there are no byte tokens to do without it"
        )
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    before = {"type": "Prepend", "prepend": SPACE}
    after: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefix:
        after.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    model = _bpe(vocabulary, _merges_from_scores(vocabulary, scores), unknown=unknown, fallback=fallback)
    return {
        "normalizer": {"type": "Sequence", "normalizers": [before, replace]} if prefix else replace,
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": after},
        "model": model,
    }


def _merges_from_scores(vocabulary: Vocabulary, scores: list[float]) -> list[list[str]]:
    """SentencePiece joins the pair whose result scores best; so each way to cut a piece in two is a merge.

    Equal scores go by id of the result, then of the left part: so do the tokenizer.json files of Llama 2 and its kin.
    """
    mergeable = {t: i for i, t in enumerate(vocabulary.tokens) if vocabulary.types[i] in (NORMAL, USER_DEFINED)}
    found: list[tuple[float, int, int, int]] = []
    for piece, index in mergeable.items():
        if vocabulary.types[index] != NORMAL:
            continue
        for cut in range(1, len(piece)):
            left, right = mergeable.get(piece[:cut]), mergeable.get(piece[cut:])
            if left is not None and right is not None:
                found.append((-scores[index], index, left, right))
    found.sort()
    return [[vocabulary.tokens[left], vocabulary.tokens[right]] for *_, left, right in found]


def _written(merges: list[list[str]]) -> list[str] | list[list[str]]:
    """Each merge as one text where no token holds a space: read a quarter faster, in half the memory."""
    if any(" " in side for merge in merges for side in merge):
        return merges
    return [" ".join(merge) for merge in merges]


def _bpe(
    vocabulary: Vocabulary,
    merges: list[list[str]],
    *,
    unknown: str | None = None,
    fallback: bool = False,
    ignore_merges: bool = False,
) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": unknown,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": unknown is not None,
        "byte_fallback": fallback,
        "ignore_merges": ignore_merges,
        "vocab": vocabulary.ids,
        "merges": _written(merges),
    }


def _added_tokens(vocabulary: Vocabulary) -> list[dict[str, Any]]:
    """Matched in the text as they are, before normalisation."""
    return [
        {
            "id": index,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": kind != USER_DEFINED,
        }
        for index, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.types, strict=True))
        if kind in (CONTROL, USER_DEFINED, UNKNOWN)
    ]


def _post_processor(vocabulary: Vocabulary) -> dict[str, Any] | None:
    """Puts bos before and eos after, where the file asks for it."""
    begin = [vocabulary.text("bos")] if vocabulary.add_bos else []
    end = [vocabulary.text("eos")] if vocabulary.add_eos else []
    if not begin and not end:
        return None

    def around(sequence: str, segment: int) -> list[dict[str, Any]]:
        mark = lambda t: {"SpecialToken": {"id": t, "type_id": segment}}  # noqa: E731
        return [*map(mark, begin), {"Sequence": {"id": sequence, "type_id": segment}}, *map(mark, end)]

    return {
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": around("A", 0) + around("B", 1),
        "special_tokens": {
            token: {"id": token, "ids": [vocabulary.ids[token]], "tokens": [token]} for token in begin + end if token
        },
    }


def _check(data: bytes, vocabulary: Vocabulary, keys: Keys) -> None:
    """The library takes it, and numbers the tokens as the file does."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_buffer(data)
    except Exception as error:  # the library raises the bare class
        raise keys.fail(f"the tokenizer in the metadata does not work: {describe(str(error))}") from error
    if tokenizer.get_vocab(with_added_tokens=True) != vocabulary.ids:
        raise keys.fail("the tokenizer in the metadata numbers its tokens in a way that cannot be rebuilt")
