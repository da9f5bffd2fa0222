"""The files of deploy/: what they name exists."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

DEPLOY = Path(__file__).resolve().parents[3] / "deploy"
SERVER = Path(__file__).resolve().parents[3] / "datong" / "server"


def test_the_dashboard_asks_for_metrics_that_there_are() -> None:
    dashboard = json.loads((DEPLOY / "grafana-dashboard.json").read_text())
    code = (SERVER / "metrics.py").read_text()
    known = set(re.findall(r'"(datong_\w+)"', code))
    asked = {name for panel in dashboard["panels"] for target in panel["targets"]
             for name in re.findall(r"datong_\w+", target["expr"])}  # fmt: skip
    assert len(asked) > 10
    for name in asked:
        assert re.sub(r"_(total|bucket|sum|count)$", "", name) in known, name
    shown = {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in asked}
    assert known - shown <= {"datong_cache_block_tokens"}, "every metric has a panel"


def test_the_unit_is_one(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze")
    program = tmp_path / "datong"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    unit = tmp_path / "datong.service"
    text = (DEPLOY / "datong.service").read_text().replace("/opt/datong/bin/datong", str(program))
    unit.write_text(text)
    ended = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, timeout=60, check=False)
    mine = [line for line in ended.stderr.splitlines() if "datong.service" in line]
    assert not mine, mine


def test_the_container_starts_what_there_is() -> None:
    lines = (DEPLOY / "Containerfile").read_text().splitlines()
    assert 'ENTRYPOINT ["datong", "serve"]' in lines and "not run" in lines[1]
