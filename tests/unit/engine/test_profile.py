"""Profiles of a small model on the CPU: every node is timed, as often as it ran, and only while asked."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import datong
from datong.cli.app import app
from datong.engine.profile import profile
from datong.errors import InvalidRequest, Unsupported

GOLDEN = Path(__file__).parents[2] / "data/goldens/qwen3"


def test_every_node_is_timed(tmp_path: Path) -> None:
    model = datong.load(GOLDEN, threads=2)
    found = profile(model, prefill=40, decode=20, tokens=6)
    assert found.limits.bytes > 1e8 and found.limits.f32 > 1e8
    prefill, decode = found.phases
    parts = model.engine.runner.executables()
    nodes = [node for part, _ in parts for node in part.nodes]
    for phase, steps in ((prefill, 1), (decode, 6)):
        assert phase.steps == steps
        assert sum(row.nodes for row in phase.rows) == len(nodes) == len(phase.events)
        assert 0 < phase.seconds < phase.wall
        matrices = [row for row in phase.rows if row.op.startswith("linear")]
        assert matrices and all(row.cost.bytes > 0 and row.seconds > 0 for row in matrices)
        assert all((row.share(found.limits) or 0) >= 0 for row in phase.rows)
        begins = [event["ts"] for event in phase.events]
        assert begins == sorted(begins)
    times = parts[0][1].times()  # type: ignore[attr-defined]
    model.generate([1, 2, 3], max_tokens=3, ignore_eos=True)
    assert parts[0][1].times() == times  # type: ignore[attr-defined]
    assert {one.runs for one in times} == {6}


def test_what_does_not_fit_or_cannot_be_timed() -> None:
    model = datong.load(GOLDEN, context=32)
    with pytest.raises(InvalidRequest, match="should fit a context of 32"):
        profile(model, prefill=33)
    with pytest.raises(Unsupported, match="`reference` does not time its nodes"):
        profile(datong.load(GOLDEN, device="reference"), 8, 8, 2)


def test_command(tmp_path: Path) -> None:
    trace = tmp_path / "t.json"
    words = ["profile", str(GOLDEN), "--prefill", "20", "--decode", "10", "--tokens", "4", "--sequences", "3"]
    done = CliRunner().invoke(app, [*words, "--trace", str(trace), "--json"])
    facts = json.loads(done.stdout)
    assert [phase["sequences"] for phase in facts["phases"]] == [1, 3]
    assert facts["limits"]["bytes_per_second"] > 0
    events = json.loads(trace.read_text())["traceEvents"]
    assert {event["cat"] for event in events} == {"prefill", "decode"}
    assert "linear" in CliRunner().invoke(app, words).stdout
    assert not list(tmp_path.glob("*.partial"))
