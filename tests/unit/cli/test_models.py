"""The table of families: complete, true to what was compared, and able to say what a checkpoint lacks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from datong.cli import models
from datong.errors import UnknownModel
from datong.importer.families import table
from datong.importer.registry import FAMILIES

GOLDENS = Path(__file__).resolve().parents[2] / "data" / "goldens"


def test_every_family_has_a_row_and_every_row_a_family() -> None:
    assert set(table.families()) == set(FAMILIES)


def test_every_golden_checkpoint_was_compared_and_lies_within_its_bound() -> None:
    found = table.evidence()
    goldens = {p.name for p in GOLDENS.iterdir() if (p / "golden.safetensors").is_file()} - {"internlm3_ntk"}
    assert set(found.results) == goldens == set(found.checkpoints)
    for name, row in found.results.items():
        assert {"reference", "cpu", "torch:cpu", "onnxruntime"} <= set(row), name
        assert len([device for device in row if device.startswith("sim:")]) == 7, name
        for device, one in row.items():
            assert one.worst is None or one.worst <= found.bound[name], (name, device)
            assert one.why if one.worst is None else not one.why, (name, device)
            assert device.startswith("sim:") == (one.evidence == "simulated") or one.evidence == "not run"


def test_the_worst_checkpoint_of_a_family_counts() -> None:
    found, cells = table.evidence(), models.cells("llama")
    assert len(found.of_family("llama")) == 3  # llama3, its shards, smollm2
    assert cells["cpu"]["worst"] == max(found.results[name]["cpu"].worst or 0 for name in found.of_family("llama"))


def test_explain_a_family() -> None:
    answer = models.explain_family("step3p7")
    assert answer["left out"] == "images" and answer["cpu"].startswith("measured, ")
    with pytest.raises(UnknownModel, match="family `gpt2` is not known\nhint: known: step3_text"):
        models.explain_family("gpt2")


def test_explain_a_checkpoint(tmp_path: Path) -> None:
    directory = tmp_path / "one"
    shutil.copytree(GOLDENS / "step3p5", directory)
    answer = models.explain_path(directory)
    assert answer["lacks"] == "nothing: it can be imported" and answer["heads for speculation"] == "1"
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "novelty": 1}))
    assert "`novelty` is not known for model_type `step3p5`" in models.explain_path(directory)["lacks"]
    (directory / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "magic"}}))
    assert "magic" in models.explain_path(directory)["lacks"]
    (directory / "config.json").write_text(json.dumps({**config, "model_type": "gpt2"}))
    assert models.explain_path(directory)["family"].startswith("`gpt2` is not known; known: ")
    (directory / "config.json").write_text("{")
    assert "config.json that can be read" in models.explain_path(directory / "config.json")["lacks"]


def test_the_command(cli_run: object = None) -> None:
    """Lines and JSON are of the same table."""
    assert models.summary("llama")[:2] == [f"{models.cells('llama')[d]['worst']:.0e}" for d in ("reference", "cpu")]
