"""`datong doctor` on recorded machines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from datong.cli.app import app

GOLDEN = Path(__file__).parent / "golden"


def run(*arguments: str, code: int = 0):
    ended = CliRunner().invoke(app, ["doctor", *arguments])
    assert ended.exit_code == code, ended.output
    return ended


@pytest.mark.parametrize("name", ["ascend-a3", "metax-container"])
def test_the_report(name: str, recorded, golden) -> None:
    recorded(name)
    lines = [line.rstrip() for line in run().stdout.splitlines()]
    start = next(i for i, line in enumerate(lines) if line.startswith("chips "))
    golden("\n".join(lines[start:]) + "\n", GOLDEN / f"doctor-{name}.txt")


def test_no_chip(recorded) -> None:
    recorded("none")
    text = run().stdout
    assert "no AI chip found in this machine: programs run on the processor" in text
    assert "torch-npu 2.10.0 installed, but no Huawei chip shows itself" in text


@pytest.mark.parametrize(("name", "code"), [("ascend-a3", 1), ("ascend-910b-x8", 0), ("nvidia-h100", 0), ("none", 0)])
def test_a_chip_that_cannot_be_used_fails_only_if_asked(name: str, code: int, recorded) -> None:
    recorded(name)
    run()
    run("--strict", code=code)


def test_json(recorded) -> None:
    recorded("ascend-a3")
    findings = json.loads(run("--json").stdout)
    assert {"python", "cpu backend", "torch", "chips"} <= {f["what"] for f in findings}
    [adapter] = [f for f in findings if f["what"] == "ascend adapter"]
    assert (adapter["chip"], adapter["state"], adapter["grade"]) == ("ascend", "missing", "A")
    assert "vllm-ascend" in adapter["source"] and adapter["hint"].startswith("pip install torch-npu==")


def test_what_could_not_be_read(recorded) -> None:
    root = recorded("ascend-910b-x8")
    (root / "sys/bus/pci/devices/0000:c1:00.0/vendor").write_text("[bold]x")
    assert "holds `[bold]x`" in run().stdout, "no markup"
