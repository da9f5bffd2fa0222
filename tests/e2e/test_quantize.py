"""`datong quantize` from the command line, on a package small enough; and what it costs the real model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import datong

pytestmark = pytest.mark.usefixtures("cache")
GOLDENS = Path(__file__).resolve().parents[1] / "data" / "goldens"


def test_sizes_and_perplexity_as_json(cli: Any, package: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("some words that the model has never seen, and some more")
    ended = cli("quantize", package, tmp_path / "made", "--weights", "int8", "--text", tmp_path / "text", "--json")
    assert ended.code == 0, ended
    found = json.loads(ended.out)
    assert found["weight_bytes_after"] < 0.4 * found["weight_bytes_before"]
    assert abs(found["perplexity_change"]) < 0.05
    assert found["perplexity_after"] == pytest.approx(
        found["perplexity_before"] * (1 + found["perplexity_change"]), rel=1e-9
    )
    assert found["requantised_from"] == []
    assert datong.load(tmp_path / "made").generate("word", max_tokens=3).tokens


def test_a_table_for_people(cli: Any, tmp_path: Path) -> None:
    ended = cli("quantize", GOLDENS / "minimax_m2", tmp_path / "made", "--weights", "int4")
    assert ended.code == 0, ended
    assert ended.out.splitlines()[0].split() == ["before", "after", "change"]
    assert "x 0." in ended.out
    assert "warning: the package has no tokenizer, perplexity was not measured" in ended.err
    assert "w2.weight: rows of 48 values are no whole blocks of 32" in ended.err


def test_rounding_twice_is_said(cli: Any, tmp_path: Path) -> None:
    cli("quantize", GOLDENS / "llama3", tmp_path / "first", "--weights", "int8")
    refused = cli("quantize", tmp_path / "first", tmp_path / "second", "--weights", "int4")
    assert refused.code == 2
    assert "hint: take the float checkpoint; --requantize rounds once more, and both errors add up" in refused.err
    ended = cli("quantize", tmp_path / "first", tmp_path / "second", "--weights", "int4", "--requantize")
    assert ended.code == 0
    assert "warning: weights were q8_0 already: they are rounded twice now" in ended.err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--weights", "int2"], "weights should be one of int8, int4, got `int2`"),
        (["--weights", "int4", "--method", "awq"], "method should be one of rtn, gptq, got `awq`"),
        (["--weights", "int4", "--text", "absent"], "`absent` could not be read"),
    ],
)
def test_mistakes_are_one_sentence(cli: Any, package: Path, tmp_path: Path, words: list[str], sentence: str) -> None:
    ended = cli("quantize", package, tmp_path / "made", *words)
    assert (ended.code, ended.out) == (2, "")
    assert sentence in ended.err
    assert not (tmp_path / "made").exists()
