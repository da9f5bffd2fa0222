"""Sealing: content hashes of every file, and golden vectors, into datong.json. Reads all weights once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
import numpy as np

from datong.errors import IntegrityError, PackageError, ShapeError
from datong.package.files import Progress, replace_files, sha256_file
from datong.package.manifest import NAME, FileEntry, Golden, check, encode
from datong.package.reader import AGAIN, Package, open_package

LogitsFn = Callable[[np.ndarray], np.ndarray]  # ids [T] int64 -> logits [T, vocab] float32

# Four scripts, so that a tokenizer that was swapped or cut shows; short, so that the reference backend needs seconds.
PROMPTS = (
    "The capital of France is",
    "def fibonacci(n):\n    ",
    "大道之行也，天下为公。",
    "1, 1, 2, 3, 5, 8,",
)
MAX_TOKENS = 24  # of one golden prompt
TOP = 8  # logits kept; enough to see a wrong scale, not only a wrong winner


def seal(
    package: Package,
    logits_fn: LogitsFn | None = None,
    backend: str = "reference",
    progress: Progress | None = None,
    *,
    prompts: Sequence[str] = PROMPTS,
) -> Package:
    """Hash every file, record golden vectors, and rewrite datong.json; returns the package opened anew.

    Args:
        package:   to be sealed; its datong.json must be writable.
        logits_fn: runs the model, ids [T] int64 -> [T, vocab] float32. None: the golden vectors stay as they are.
        backend:   name of the backend behind `logits_fn`, for the record.
        progress:  told of bytes hashed.
        prompts:   tokenised by the package's own tokenizer; without one, fixed ids are used.

    Raises:
        IntegrityError: a file is not what an earlier hash says; sealing would hide that.
    """
    files = [_hashed(package, entry, progress) for entry in package.manifest.files]
    goldens = list(package.manifest.goldens)
    if logits_fn is not None:
        goldens = [_golden(ids, logits_fn, package.manifest.vocab_size, backend) for ids in token_ids(package, prompts)]
    sealed = msgspec.structs.replace(package.manifest, files=files, sealed=True, goldens=goldens)
    check(sealed, NAME)
    replace_files(package.root, {NAME: encode(sealed)})
    return open_package(package.root, weights_root=package.weights_root)


def _hashed(package: Package, entry: FileEntry, progress: Progress | None) -> FileEntry:
    content = sha256_file(package.path(entry.path), progress)
    if entry.sha256 is not None and entry.sha256 != content:
        raise IntegrityError(
            entry.path, f"the content should have SHA-256 {entry.sha256[:12]}…, it has {content[:12]}…", AGAIN
        )
    return msgspec.structs.replace(entry, sha256=content)


def token_ids(package: Package, prompts: Sequence[str] = PROMPTS) -> list[list[int]]:
    """Token ids of the golden prompts: at least one list, each of 1 to MAX_TOKENS ids below the vocabulary's size."""
    vocab = package.manifest.vocab_size
    limit = min(MAX_TOKENS, package.manifest.context_length)
    if package.tokenizer_file is None:
        return [[(i * 7919 + 13 * start) % vocab for i in range(1, limit + 1)] for start in (1, 2)]
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(package.read("tokenizer.json").decode())
    except Exception as e:  # tokenizers raises bare Exception
        raise PackageError("tokenizer.json", f"the tokenizer cannot be read: {e}") from e
    lists = [tokenizer.encode(text).ids[:limit] for text in prompts]
    lists = [ids for ids in lists if ids and max(ids) < vocab]
    if not lists:
        raise PackageError("tokenizer.json", "the tokenizer gives no ids of the model's vocabulary for any prompt")
    return lists


def run(logits_fn: LogitsFn, ids: Sequence[int], vocab: int) -> np.ndarray:
    """Logits [T, vocab] of `ids`, checked for shape and for being finite. Raises ShapeError or IntegrityError."""
    logits = np.asarray(logits_fn(np.array(ids, np.int64)))
    if logits.shape != (len(ids), vocab):
        raise ShapeError(
            "golden", f"logits should have shape {[len(ids), vocab]}, the backend gave {list(logits.shape)}"
        )
    if not np.isfinite(logits).all():
        raise IntegrityError("golden", "logits should be finite, the backend gave nan or infinity", AGAIN)
    return logits


def _golden(ids: list[int], logits_fn: LogitsFn, vocab: int, backend: str) -> Golden:
    """The best TOP tokens after `ids`; of equal ones the smaller id first."""
    last = run(logits_fn, ids, vocab)[-1].astype(np.float64)
    best = np.argsort(-last, kind="stable")[:TOP]
    # Six digits: far below any tolerance, and the same text on every machine that computes the same f32.
    logits = [round(float(last[i]), 6) for i in best]
    return Golden(ids, len(ids) - 1, [int(i) for i in best], logits, backend)
