"""What bench/soak.py does for ten minutes with 64 clients, for a few hundred requests."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datong.cli.bench_serve import made_up
from datong.server.loadtest import Plan, run

CLIENTS, REQUESTS = 16, 320
GROWTH = 24.0  # MiB; what one request leaves behind would be seen a few hundred times


def resident(live: Any) -> float:
    """MiB of the server's process."""
    text = Path(f"/proc/{live.process.pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+)", text)
    assert found
    return int(found[1]) / 1024


def test_many_clients_leave_nothing_behind(
    serve: Callable[..., Any], wide_package: Path, until_true: Callable[..., None]
) -> None:
    live = serve(wide_package)
    prompts = made_up(REQUESTS, 12, 1)
    plans = [Plan(live.url, "tiny", prompts, 12, REQUESTS, clients=CLIENTS, extra={"ignore_eos": True})] * 2
    first = asyncio.run(run(plans[0]))
    before = resident(live)
    second = asyncio.run(run(plans[1]))
    assert [a.error for a in (*first, *second) if a.error] == []
    assert {a.tokens for a in (*first, *second)} == {12} and len(first) == len(second) == REQUESTS
    for name in ("requests_running", "requests_waiting", "requests_live", "cache_blocks_held"):
        until_true(lambda name=name: live.metric(f"datong_{name}") == 0)
    assert resident(live) - before < GROWTH
