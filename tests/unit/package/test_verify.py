"""Verifying: each check can fail, and says why."""

import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from datong.errors import IntegrityError
from datong.package.create import import_checkpoint
from datong.package.reader import Package
from datong.package.seal import seal
from datong.package.verify import Report, default_tolerance, verify


def made_up(ids: np.ndarray) -> np.ndarray:
    return np.sin(np.arange(128)[None, :] * (1 + ids[:, None])).astype(np.float32) * 10


def failed(report: Report) -> dict[str, str]:
    return {c.name: c.reason for c in report.checks if c.status == "failed"}


def flip_last_byte(path: Path) -> None:
    with open(path, "r+b") as f:
        f.seek(-1, os.SEEK_END)
        last = f.read(1)[0]
        f.seek(-1, os.SEEK_END)
        f.write(bytes([last ^ 0x40]))


def test_a_good_package(package: Package) -> None:
    report = verify(package)
    assert report.ok and failed(report) == {}
    skipped = {c.name: c.reason for c in report.checks if c.status == "skipped"}
    assert skipped == {
        "hash model.safetensors": "no content hash yet: run datong seal",
        "tokenizer": "the package carries no tokenizer",
        "golden": "no golden vectors: the package was not sealed with a backend",
    }
    report.raise_if_failed()


def test_a_sealed_package_with_its_backend(package: Package) -> None:
    seal(package, made_up, "made-up")
    report = verify(package.root, made_up)
    assert report.ok
    assert [c.status for c in report.checks if c.name.startswith("golden")] == ["ok", "ok"]
    assert [c.status for c in verify(package.root).checks if c.name.startswith("golden")] == ["skipped", "skipped"]


def test_one_flipped_bit_in_the_weights(package: Package) -> None:
    seal(package)
    flip_last_byte(package.root / "model.safetensors")
    report = verify(package.root)
    assert list(failed(report)) == ["hash model.safetensors"]
    with pytest.raises(IntegrityError, match=r"^\[verify\] hash model.safetensors: .* should have SHA-256") as e:
        report.raise_if_failed()
    assert e.value.hint is not None


def test_an_unsealed_package_cannot_tell(package: Package) -> None:
    flip_last_byte(package.root / "model.safetensors")
    assert verify(package).ok, "that is what sealing is for"


@pytest.mark.parametrize("change", [1.001, -1.0])
def test_other_logits(package: Package, change: float) -> None:
    seal(package, made_up)
    report = verify(package, lambda ids: made_up(ids) * change)
    assert set(failed(report)) == {"golden 0", "golden 1"}
    assert "the logits after 24 tokens should be those of `reference` within 0.0004" in failed(report)["golden 0"]
    assert verify(package, lambda ids: made_up(ids) * 1.001, tolerance=0.01).ok


def test_nan_is_no_logit(package: Package) -> None:
    seal(package, made_up)
    assert "logits should be finite" in failed(verify(package, lambda ids: made_up(ids) * np.nan))["golden 0"]


def test_a_package_that_does_not_open(package: Package, tmp_path: Path) -> None:
    (package.root / "config.json").unlink()
    assert list(failed(verify(package))) == ["manifest"]
    assert "is missing" in failed(verify(package.root))["manifest"]
    assert "does not exist" in failed(verify(tmp_path / "none"))["manifest"]


def test_a_manifest_that_promises_other_operators(package: Package) -> None:
    path = package.root / "datong.json"
    manifest = json.loads(path.read_bytes())
    manifest["operator_set"]["operators"][0]["count"] += 1
    path.write_text(json.dumps(manifest))
    assert "should say what the graph uses" in failed(verify(package))["operators"]


def test_a_manifest_that_promises_another_template(checkpoint: Path) -> None:
    (checkpoint / "chat_template.jinja").write_text("{{ messages }}")
    package = import_checkpoint(checkpoint)
    assert verify(package).ok
    path = package.root / "datong.json"
    manifest = json.loads(path.read_bytes())
    manifest["text"]["chat_template_sha256"] = "0" * 64
    path.write_text(json.dumps(manifest))
    assert "should hash the tokenizer and chat template" in failed(verify(package))["tokenizer"]


def test_the_tolerance_follows_the_weights(package: Package) -> None:
    assert default_tolerance(package) == 4e-4


def test_for_people_and_for_programs(package: Package) -> None:
    (package.root / "graph.onnx").write_bytes((package.root / "graph.onnx").read_bytes()[::-1])
    report = verify(package)
    console = Console(width=200, file=io.StringIO())
    console.print(report.render())
    text = console.file.getvalue()
    assert "hash graph.onnx" in text and "failed" in text and "import the model again" in text
    facts = json.loads(json.dumps(report.as_dict()))
    assert facts["ok"] is False and {c["name"] for c in facts["checks"]} >= {"hash graph.onnx", "offsets", "graph"}
