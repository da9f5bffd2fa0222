"""What quantising cost: bytes, and how much more a text surprises the new model than the old one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datong.engine.load import load
from datong.engine.perplexity import perplexity
from datong.package.files import Progress, watch
from datong.package.reader import Package
from datong.quantize.make import Made
from datong.quantize.texts import decode

TEXT = Path(__file__).with_name("text.txt")  # 1,200 tokens, written for this project
CONTEXT = 2048  # tokens; a longer text is cut into pieces of that


def facts(made: Made) -> dict[str, Any]:
    """Sizes and formats, JSON-able."""
    before, after = made.origin.manifest.weights, made.package.manifest.weights
    requantised = sorted({c.matrix.format.name for c in made.choices if c.changed and c.matrix.format.block})
    return {
        "path": str(made.package.root),
        "source": made.origin.manifest.model.source,
        "method": made.method,
        "weight_bytes_before": before.bytes,
        "weight_bytes_after": after.bytes,
        "bits_per_weight": 8 * after.bytes / max(1, after.parameters),
        "formats": {
            f.format: {"weights": f.weights, "parameters": f.parameters, "bytes": f.bytes} for f in after.formats
        },
        "requantised_from": requantised,
        "kept": made.kept(),
    }


def words_of(text: str | Path | None) -> str:
    """The text to measure on; None: the one that comes along. Raises PackageError or InvalidRequest."""
    return decode(TEXT if text is None else Path(text).expanduser())


def compare(made: Made, words: str, *, threads: int | None = None, progress: Progress | None = None) -> dict[str, Any]:
    """Perplexity before and after, on the CPU with activations in f32: what differs is the weights alone.

    Raises InvalidRequest when the text is too short, and what `load` raises.
    """
    tell, found, count = watch(progress), [], 0
    for done, package in enumerate((made.origin, made.package)):
        tell("perplexity", done, 2)
        value, count = _perplexity(package, words, threads)
        found.append(value)
    tell("perplexity", 2, 2)
    before, after = found
    return {
        "tokens": count,
        "perplexity_before": before,
        "perplexity_after": after,
        "perplexity_change": after / before - 1,
    }


def _perplexity(package: Package, text: str, threads: int | None) -> tuple[float, int]:
    """And the number of tokens."""
    context = min(CONTEXT, package.manifest.context_length)
    model = load(package, context=context, threads=threads, activations="f32")
    ids = model.tokenizer.encode(text)
    return perplexity(model, ids), len(ids)
