"""Rebuilt tokenizers give the ids of the originals: llama.cpp's, SentencePiece's, and what each row of the table says.

The captured answers are made by tests/data/capture_llama_tokens.py and make_spm_gguf.py. SmolLM2 is compared in
tests/e2e/test_gguf_import.py, where its file is at hand.
"""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from datong.errors import TokenizerError
from datong.importer.gguf import tokenizer
from datong.importer.gguf.keys import Keys
from datong.importer.gguf.pretokenizers import TABLE
from datong.importer.gguf.reader import read_gguf
from datong.importer.gguf.tokenizer import read_vocabulary, rebuild_tokenizer

DATA = Path(__file__).resolve().parents[3] / "data"
Save = Callable[[bytes], Path]


@pytest.fixture(scope="module")
def lines() -> list[str]:
    found: list[str] = json.loads((DATA / "tokenizer" / "lines.json").read_text())
    assert len(set(found)) == len(found) >= 1000
    return found


@pytest.fixture
def rebuild(raw: SimpleNamespace, save: Save) -> Callable[[dict[str, Any]], Tokenizer]:
    """Keys without their prefix `tokenizer.ggml.` -> tokenizer."""

    def make(keys: dict[str, Any]) -> Tokenizer:
        values = read_gguf(save(raw.file({f"tokenizer.ggml.{k}": v for k, v in keys.items()}, []))).values
        read = Keys(values, "m.gguf")
        tokens = values.get("tokenizer.ggml.tokens", [])
        return Tokenizer.from_buffer(rebuild_tokenizer(read, read_vocabulary(read, len(tokens))))

    return make


def test_lines_are_those_of_the_script(lines: list[str]) -> None:
    assert runpy.run_path(str(DATA / "make_tokenizer_lines.py"))["lines"]() == lines


@pytest.fixture
def spm(rebuild: Callable[[dict[str, Any]], Tokenizer]) -> tuple[Tokenizer, dict[str, Any]]:
    fixture = json.loads((DATA / "tokenizer" / "spm.json").read_text())
    keys = {
        "model": "llama", "pre": "default", "tokens": fixture["tokens"], "scores": fixture["scores"],
        "token_type": fixture["types"], "unknown_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    return rebuild(keys), fixture


def test_sentencepiece_ids(spm: tuple[Tokenizer, dict[str, Any]], lines: list[str]) -> None:
    tokenizer, fixture = spm
    pairs = [(line, ids) for line, ids in zip(lines, fixture["ids"], strict=True) if ids is not None]
    assert len(pairs) > 1000
    assert [line for line, ids in pairs if tokenizer.encode(line, add_special_tokens=False).ids != ids] == []
    readable = [(line, ids) for line, ids in pairs if "▁" not in line]  # which stands for a space
    assert [line for line, ids in readable if tokenizer.decode(ids) != line] == []


def test_spm_equals_llama_cpp(spm: tuple[Tokenizer, dict[str, Any]], lines: list[str]) -> None:
    captured = np.load(DATA / "tokenizer" / "spm.npz")
    tokenizer, _ = spm
    for name in ("plain", "special"):
        tokenizer.encode_special_tokens = name == "plain"
        expected = np.split(captured[name], np.cumsum(captured[f"{name}_counts"])[:-1])
        found = [tokenizer.encode(line, add_special_tokens=False).ids for line in lines]
        assert [i for i, e in enumerate(expected) if found[i] != e.tolist()] == [], name


def test_bos_and_eos(raw: SimpleNamespace, rebuild: Callable[[dict[str, Any]], Tokenizer]) -> None:
    keys = {k.removeprefix("tokenizer.ggml."): v for k, v in raw.spm_keys().items()}
    plain = rebuild(keys).encode("ab", add_special_tokens=False).ids
    assert plain == [raw.spm_tokens.index("▁ab")]
    assert rebuild(keys).encode("ab").ids == [1, *plain]  # SentencePiece models begin with bos unless the file says no
    assert rebuild(keys | {"add_bos_token": False}).encode("ab").ids == plain
    assert rebuild(keys | {"add_eos_token": True}).encode("ab").ids == [1, *plain, 2]
    assert rebuild(keys | {"add_space_prefix": False}).encode("ab").tokens == ["<s>", "ab"]
    assert rebuild(keys).encode("a<s>b").ids[2] == 1


def test_the_stand_in_of_internlm2_goes_back(raw: SimpleNamespace, save: Save) -> None:
    """llama.cpp's converter writes InternLM2's token NUL as a dragon."""
    keys = raw.spm_keys()
    keys["tokenizer.ggml.tokens"] = [*raw.spm_tokens[:-1], "🐉"]
    for arch, text in (("internlm2", "\0"), ("llama", "🐉")):
        values = read_gguf(save(raw.file(keys | {"general.architecture": arch}, []))).values
        read = Keys(values, "m.gguf")
        tokenizer = Tokenizer.from_buffer(rebuild_tokenizer(read, read_vocabulary(read, 265)))
        assert tokenizer.encode(text).ids == [1, 259, 264]


# ── byte-level ───────────────────────────────────────────────────────────────────────────────────────────────────────

# GPT-2's byte alphabet: printable bytes stand for themselves, the others for the characters from U+0100 on.
_PLAIN = [*range(33, 127), *range(161, 173), *range(174, 256)]
ALPHABET = [
    chr(b) if b in _PLAIN else chr(256 + [x for x in range(256) if x not in _PLAIN].index(b)) for b in range(256)
]


def byte_level(pre: str, words: list[str], **changes: Any) -> dict[str, Any]:
    """A vocabulary in which each of `words` can be built by merges from the left."""
    tokens, merges = ["<|end|>", "<tool>", *ALPHABET], []
    for word in words:
        pieces = [ALPHABET[b] for b in word.encode()]
        for end in range(1, len(pieces)):
            left = "".join(pieces[:end])
            if left + pieces[end] not in tokens:
                tokens.append(left + pieces[end])
                merges.append(f"{left} {pieces[end]}")
    types = [3, 4] + [1] * (len(tokens) - 2)
    keys = {"model": "gpt2", "pre": pre, "tokens": tokens, "token_type": types, "merges": merges, "eos_token_id": 0}
    return keys | {"bos_token_id": 0} | changes


# name -> text, and the words that it is cut into, worked out by hand from the expressions
CUTS = {
    "gpt-2": ("I'll  pay 1234", ["I", "'ll", " ", " pay", " 1234"]),
    "smollm": ("I'll  pay 1234", ["I", "'ll", " ", " pay", " ", "1", "2", "3", "4"]),
    "llama-bpe": ("I'LL  pay\n\n 12345", ["I", "'LL", " ", " pay", "\n\n", " ", "123", "45"]),
    "qwen2": ("x=>y 12\r\n z", ["x", "=>", "y", " ", "1", "2", "\r\n", " z"]),
    "deepseek-llm": ("ab你好 12!\n", ["ab", "你好", " ", "12", "!", "\n"]),
    "deepseek-coder": ("ab你好 12!\n", ["ab", "你好", " ", "1", "2", "!", "\n"]),
    "deepseek-v3": ("f(x)你好 12345", ["f", "(x", ")", "你好", " ", "123", "45"]),
    "tekken": ("parseHTMLFile 12", ["parse", "HTMLFile", " ", "1", "2"]),
    "gpt-4o": ("parseHTML's a/b 1234", ["parse", "HTML's", " a", "/b", " ", "123", "4"]),
}


@pytest.mark.parametrize("pre", TABLE)
def test_every_rule_loads_and_loses_nothing(
    pre: str, lines: list[str], rebuild: Callable[[dict[str, Any]], Tokenizer]
) -> None:
    tokenizer = rebuild(byte_level(pre, ["the", " the", "é"]))
    for line in lines[:300:7]:
        expected = tokenizer.normalizer.normalize_str(line) if TABLE[pre].nfc else line
        assert (
            tokenizer.decode(tokenizer.encode(line, add_special_tokens=False).ids, skip_special_tokens=False)
            == expected
        )


@pytest.mark.parametrize(("pre", "text", "words"), [(k, *v) for k, v in CUTS.items()], ids=CUTS)
def test_words(pre: str, text: str, words: list[str], rebuild: Callable[[dict[str, Any]], Tokenizer]) -> None:
    tokenizer = rebuild(byte_level(pre, []))
    decode = dict(zip(ALPHABET, range(256), strict=True))
    cut = [bytes(decode[c] for c in word).decode() for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)]
    assert cut == words


def test_added_tokens(rebuild: Callable[[dict[str, Any]], Tokenizer]) -> None:
    tokenizer = rebuild(byte_level("gpt-2", []))
    ids = tokenizer.encode("a<|end|>b<tool>").ids
    assert ids == [2 + ord("a"), 0, 2 + ord("b"), 1]
    assert tokenizer.decode(ids) == "ab<tool>"  # control tokens are special, user-defined ones are text
    tokenizer.encode_special_tokens = True
    assert len(tokenizer.encode("<|end|>").ids) == 7 and tokenizer.encode("<tool>").ids == [1]


def test_whole_words_where_merges_are_ignored(rebuild: Callable[[dict[str, Any]], Tokenizer]) -> None:
    keys = byte_level("llama-bpe", ["ab"], add_bos_token=False)
    keys["tokens"].append("zzz")  # in the vocabulary, but no merges lead to it
    keys["token_type"].append(1)
    assert rebuild(keys).encode("zzz").tokens == ["zzz"]
    assert rebuild(keys | {"pre": "gpt-2"}).encode("zzz").tokens == ["z", "z", "z"]


def test_bos_defaults(rebuild: Callable[[dict[str, Any]], Tokenizer]) -> None:
    assert len(rebuild(byte_level("llama-bpe", [])).encode("a").ids) == 2
    assert len(rebuild(byte_level("qwen2", [])).encode("a").ids) == 1


def test_empty_and_unused_tokens_keep_their_ids(rebuild: Callable[[dict[str, Any]], Tokenizer]) -> None:
    keys = byte_level("gpt-2", [])
    keys["tokens"] += ["[PAD258]", "", "<|late|>"]
    keys["token_type"] += [5, 1, 3]
    tokenizer = rebuild(keys)
    assert tokenizer.encode("<|late|>").ids == [260] and tokenizer.id_to_token(259) == "[EMPTY_259]"


def without(*names: str, **changes: Any) -> dict[str, Any]:
    return {k: v for k, v in (byte_level("gpt-2", ["ab"]) | changes).items() if k not in names}


SPM = {"model": "llama", "scores": [0.0] * 259}
TOKENS = byte_level("gpt-2", ["ab"])["tokens"]
WRONG: list[tuple[dict[str, Any], str]] = [
    (without("model"), r"key `tokenizer.ggml.model` \(a string\) is missing"),
    (without(model="t5"), "`tokenizer.ggml.model` should be `gpt2` or `llama`, it is `t5`"),
    (without("pre"), r"key `tokenizer.ggml.pre` \(a string\) is missing"),
    (
        without(pre="falcon9"),
        r"`tokenizer.ggml.pre` is `falcon9`, .*\nhint: known: default, gpt-2, phi-2, smollm, .*llama-bpe",
    ),
    (without("tokens"), r"key `tokenizer.ggml.tokens` \(an array of strings\) is missing"),
    (without(tokens="abc"), "key `tokenizer.ggml.tokens` should be an array of strings, it is 'abc'"),
    (without("token_type"), r"key `tokenizer.ggml.token_type` \(an array of numbers\) is missing"),
    (without(token_type=[1, 2]), "key `tokenizer.ggml.token_type` should be 259 numbers, it is an array of 2 int32"),
    (without("merges"), r"key `tokenizer.ggml.merges` \(an array of strings\) is missing"),
    (without(merges=["a zz"]), "`tokenizer.ggml.merges` 0 is 'a zz', which joins or makes tokens that do not exist"),
    (without(merges=["ab"]), "`tokenizer.ggml.merges` 0 is 'ab', which joins"),
    (without(tokens=["x", *TOKENS[1:-1], "x"]), "token 'x' has two ids in `tokenizer.ggml.tokens`"),
    (without(bos_token_id=999), "`tokenizer.ggml.bos_token_id` is 999, the vocabulary has 259 tokens"),
    (
        without("bos_token_id", add_bos_token=True),
        "key `tokenizer.ggml.bos_token_id` is missing, but texts are to begin",
    ),
    (without("scores", model="llama"), r"key `tokenizer.ggml.scores` \(an array of numbers\) is missing"),
    (without(**SPM | {"scores": [float("inf")] * 259}), "`tokenizer.ggml.scores` should be finite numbers"),
    (without(**SPM), "key `tokenizer.ggml.unknown_token_id` is missing, and there are no byte tokens"),
]


@pytest.mark.parametrize(("keys", "message"), WRONG, ids=range(len(WRONG)))
def test_wrong_fields_are_named(
    keys: dict[str, Any], message: str, rebuild: Callable[[dict[str, Any]], Tokenizer]
) -> None:
    with pytest.raises(TokenizerError, match=message) as caught:
        rebuild(keys)
    assert caught.value.where == "m.gguf"


def test_another_number_of_tokens_than_rows(raw: SimpleNamespace, save: Save) -> None:
    read = Keys(read_gguf(save(raw.file(raw.spm_keys(), []))).values, "m.gguf")
    with pytest.raises(TokenizerError, match=r"`tokenizer.ggml.tokens` has 265 tokens, the model's vocabulary has 300"):
        read_vocabulary(read, 300)


def test_merges_are_texts_unless_a_token_holds_a_space():
    assert tokenizer._written([["a", "b"], ["ab", "c"]]) == ["a b", "ab c"]
    spaced = [["a", "b"], ["a ", "b"]]
    assert tokenizer._written(spaced) == spaced
