"""`datong bench serve` against a live server, and against none."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

COMMAND = [sys.executable, "-c", "from datong.cli import main; main()", "bench", "serve"]


def bench(*args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *map(str, args)], capture_output=True, text=True, timeout=120, check=False)


def test_clients_and_a_plot(live: Any, tmp_path: Path) -> None:
    plot = tmp_path / "load.svg"
    asked = ["--requests", 20, "--clients", 4, "--words", 10, "--max-tokens", 7, "--ignore-eos", "--plot", plot]
    ended = bench(live.url, *asked, "--json")
    assert ended.returncode == 0, ended.stderr
    facts = json.loads(ended.stdout)
    assert (facts["requests"], facts["answered"], facts["errors"], facts["model"]) == (20, 20, {}, "tiny")
    assert facts["tokens"] == 20 * 7, "as the server counts them"
    times = facts["milliseconds"]
    assert all(0 < times[name]["p50"] <= times[name]["p99"] for name in ("ttft", "tpot", "whole"))
    assert times["whole"]["p50"] > times["ttft"]["p50"]
    bars = [e for e in ET.parse(plot).iter() if e.tag.endswith("rect")]
    assert len(bars) > 20


def test_arrivals_chat_and_a_table(live: Any, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("one\n\ntwo\n")
    for how in ("poisson", "fixed"):
        asked = ["--requests", 6, "--rate", 50, "--arrivals", how, "--chat", "--prompts", prompts, "--max-tokens", 3]
        ended = bench(f"{live.url}/v1", *asked)
        assert ended.returncode == 0 and "6 of 6 answered" in ended.stdout and "first token" in ended.stdout, ended


def test_what_the_server_refuses_is_counted(live: Any) -> None:
    ended = bench(live.url, "--requests", 3, "--clients", 1, "--model", "other", "--json")
    facts = json.loads(ended.stdout)
    assert ended.returncode == 1 and facts["answered"] == 0
    [(text, count)] = facts["errors"].items()
    assert count == 3 and text.startswith("404: ") and "other" in text


def test_nobody_there_and_no_url() -> None:
    ended = bench("http://127.0.0.1:9")
    assert ended.returncode == 2 and "should list models" in ended.stderr and "Traceback" not in ended.stderr
    ended = bench("nonsense")
    assert ended.returncode == 2 and "a server's URL was expected, got `nonsense`" in ended.stderr
    ended = bench("http://127.0.0.1:9", "--model", "m", "--requests", "2", "--json")
    assert ended.returncode == 1 and sum(json.loads(ended.stdout)["errors"].values()) == 2
