"""Tokens to calibrate on: pieces of a text that the user gives, or what the model itself writes.

A model's own writing needs no data, no licence and no language to be chosen; each piece begins with a random token, so
that the pieces are about many things (Liu et al. 2023, "LLM-QAT", arXiv:2305.17888). On SmolLM2-135M it serves better
than English technical prose of the same length: gptq.py's 0.43 is 0.45 with this project's own documents.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from datong.engine.load import load
from datong.engine.tokenizer import Tokenizer
from datong.errors import InvalidRequest
from datong.package.files import Progress, read_bounded, watch
from datong.package.reader import Package

PIECES, LENGTH = 64, 128  # of the model's own writing; 8,192 tokens
AT_ONCE = 32  # pieces that are written together: their keys and values are what costs memory
MOST = 256  # pieces of a user's text, evenly spread; 32,768 tokens at most
MAX_TEXT = 64 << 20  # bytes


def decode(path: Path) -> str:
    """The text in a file. Raises PackageError, or InvalidRequest when it is no UTF-8."""
    try:
        return read_bounded(path, MAX_TEXT, "quantize").decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidRequest("quantize", f"`{path}` should be UTF-8 text", "iconv -t UTF-8 converts it") from None


def written(package: Package, threads: int | None = None, progress: Progress | None = None) -> list[list[int]]:
    """PIECES texts by the model, sampled at temperature 1. The same each time, on the same machine."""
    length = min(LENGTH, package.manifest.context_length)
    model = load(package, context=length, cache_tokens=AT_ONCE * length, threads=threads)
    tell, found = watch(progress), []
    first = np.random.default_rng(0).integers(0, model.vocab_size, PIECES).tolist()
    for start in range(0, PIECES, AT_ONCE):
        tell("writing texts to calibrate on", start, PIECES)
        prompts = [[token] for token in first[start : start + AT_ONCE]]
        answers = model.generate(prompts, max_tokens=length - 1, temperature=1.0, seed=0, ignore_eos=True)
        found += [[*prompt, *answer.tokens] for prompt, answer in zip(prompts, answers, strict=True)]
    tell("writing texts to calibrate on", PIECES, PIECES)
    return found


def given(package: Package, text: str) -> list[list[int]]:
    """Pieces of LENGTH tokens. Raises InvalidRequest when the text is too short, TokenizerError without a tokenizer."""
    length = min(LENGTH, package.manifest.context_length)
    ids = Tokenizer.load(package).encode(text)
    pieces = [ids[start : start + length] for start in range(0, len(ids) - length + 1, length)]
    if not pieces:
        raise InvalidRequest("quantize", f"a text of at least {length} tokens was expected, it has {len(ids)}")
    step = max(1, len(pieces) // MOST)
    return pieces[::step][:MOST]
