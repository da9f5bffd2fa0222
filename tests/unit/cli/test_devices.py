"""`datong devices` on recorded machines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from datong.cli.app import app

GOLDEN = Path(__file__).parent / "golden"


def run(*arguments: str):
    ended = CliRunner().invoke(app, ["devices", *arguments])
    assert ended.exit_code == 0, ended.output
    return ended


def chips(text: str) -> str:
    """What follows the table of devices, which is this machine's."""
    return "\n".join(line.rstrip() for line in text[text.index("AI chips in this machine") :].splitlines()) + "\n"


@pytest.mark.parametrize("name", ["ascend-910b-container", "two-vendors"])
def test_the_table(name: str, recorded, golden) -> None:
    recorded(name)
    golden(chips(run().stdout), GOLDEN / f"devices-{name}.txt")


def test_why(recorded, golden) -> None:
    recorded("ascend-910b-container")
    golden(chips(run("--why").stdout), GOLDEN / "devices-why.txt")


def test_a_machine_without_chips_says_so_in_one_line(recorded) -> None:
    recorded("none")
    last = run().stdout.strip().splitlines()[-1]
    assert last.startswith("No AI chip found in this machine; looked for ") and "biren-br2xx" in last


def test_json(recorded) -> None:
    root = recorded("metax-container")
    ended = run("--json")
    facts = json.loads(ended.stdout)
    assert f"warning: a recorded machine is looked at: {root}" in ended.stderr.replace("\n", "")
    assert {"cpu", "reference"} <= {d["name"] for d in facts["devices"]}
    assert all(d["evidence"] for d in facts["devices"] + facts["chips"])
    out_of_reach, chip = facts["chips"]
    assert (out_of_reach["device"], chip["device"], chip["usable"]) == (None, "metax:0", False)
    assert [r["step"] for r in chip["reasons"]] == ["pci", "node", "smi", "library", "torch"]
    assert {h["what"] for h in chip["in_the_way"]} == {"container", "toolkit", "torch"}
    assert {f["source"] for f in facts["findings"] if f["grade"]} != {""}


def test_hidden_and_out_of_reach(recorded) -> None:
    recorded("nvidia-h100")
    assert "hidden from this process" in run().stdout
    recorded("metax-container")
    assert "not within reach of this process (and 3 more)" in run().stdout


def test_simulated(recorded) -> None:
    """The simulated chips are a list of their own."""
    recorded("none")
    lines = run("--simulated").stdout.splitlines()
    assert sum(line.startswith("sim:") for line in lines) >= 8
    assert all(line.rstrip().endswith("simulated") for line in lines if line.startswith("sim:"))
    assert "sim:" not in run().stdout
    names = [d["name"] for d in json.loads(run("--simulated", "--json").stdout)["devices"]]
    assert {"sim:ascend-910b", "sim:biren-br2xx-br200", "sim:metax-c500"} <= set(names)


def test_a_recorded_machine_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from datong.errors import DatongError

    monkeypatch.setenv("DATONG_MACHINE_ROOT", str(tmp_path / "gone"))
    ended = CliRunner().invoke(app, ["devices"])
    assert isinstance(ended.exception, DatongError) and "`DATONG_MACHINE_ROOT` must be a directory" in str(
        ended.exception
    )
