"""What inspect shows: the same facts as data and as text."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from datong.package.create import import_checkpoint
from datong.package.describe import describe, number, render, size
from datong.package.reader import Package
from datong.package.seal import seal


def text_of(package: Package) -> str:
    console = Console(width=120, file=io.StringIO())
    console.print(render(describe(package)))
    return console.file.getvalue()


def test_facts(package: Package) -> None:
    info = json.loads(json.dumps(describe(package)))
    # 2 layers x 2 heads x (16 + 16) numbers
    assert info["cache"]["bytes_per_token"] == {"f32": 512, "f16": 256}
    assert info["cache"]["bytes_at_full_context"] == {"f32": 512 * 256, "f16": 256 * 256}
    assert info["parameters"] == 82240 and info["weight_bytes"] == 4 * 82240
    assert info["formats"] == [{"format": "f32", "weights": 20, "parameters": 82240, "bytes": 328960}]
    assert info["context_length"] == 256 and info["vocab_size"] == 128
    assert info["sealed"] is False and info["hashed_files"] == 2
    assert "architectures" in info["ignored"]["config_keys"]
    assert {o["op"]: o["count"] for o in info["operator_set"]["operators"]}["Attention"] == 2


def test_text(package: Package) -> None:
    text = text_of(package)
    for part in ("llama", "82.2 k", "321.2 KiB", "256 tokens", "256 B (f16), 512 B (f32)", "Attention", "not stated",
                 "no (2 of 3 files have a content hash)", "opset 27", "not hashed", "architectures"):  # fmt: skip
        assert part in text, part
    sealed = text_of(seal(package))
    assert "yes, with 0 golden vectors" in sealed and "not hashed" not in sealed


def test_names_from_strangers_are_not_markup(checkpoint: Path) -> None:
    strange = checkpoint.rename(checkpoint.with_name("[bold]x[nonsense]"))
    assert "[bold]x[nonsense]" in text_of(import_checkpoint(strange))


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (96655360, "92.2 MiB"),
        (400 << 30, "400.0 GiB"),
        (3 << 50, "3072.0 TiB"),
    ],
)
def test_sizes(count: int, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(
    ("count", "text"), [(999, "999"), (1000, "1.0 k"), (134515008, "134.5 M"), (7 * 10**9, "7.0 B"), (10**12, "1.0 T")]
)
def test_numbers(count: int, text: str) -> None:
    assert number(count) == text
