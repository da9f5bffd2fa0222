"""`datong serve` for a long time under load, and what its clients do to it.

    python bench/soak.py load MODEL [--clients 64] [--minutes 10]      errors, stuck requests, memory, p99 of pieces
    python bench/soak.py disconnects MODEL [--requests 1000]           clients that leave in the middle of a stream
    python bench/soak.py kill MODEL                                    SIGKILL under load, restart; SIGTERM under load

The server is a child process; at the end every cache block must be back, and nothing may wait. CSV into bench/results/.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import csv
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import msgspec
from compare import HERE, commit, machine
from serve import Server, start_datong

from datong.cli.bench_serve import made_up
from datong.server.loadtest import Plan, post, run, summary

LONG = 800  # tokens: 16 such answers take longer than it takes to kill a server


def metric(server: Server, name: str) -> float:
    """Sum over the labels."""
    text = httpx.get(f"{server.url}/metrics").text
    return sum(float(value) for value in re.findall(rf"^{name}(?:\{{[^}}]*\}})? (\S+)$", text, re.MULTILINE))


def memory_mib(server: Server) -> float:
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024


def settled(server: Server) -> dict[str, float]:
    """What is left when nobody asks any more; all of it should be 0."""
    names = ("datong_requests_running", "datong_requests_waiting", "datong_requests_live", "datong_cache_blocks_held")
    for _ in range(100):
        found = {name: metric(server, name) for name in names}
        if not any(found.values()):
            break
        time.sleep(0.1)
    return found


def load(options: argparse.Namespace) -> list[dict]:
    server, sizes, stop = start_datong(options.model, options.threads, []), [], threading.Event()

    def watch() -> None:
        while not stop.wait(5):
            sizes.append(memory_mib(server))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        seconds = 60 * options.minutes
        plan = Plan(server.url, "m", made_up(5000, 60, 1), 48, 10**9, seconds, options.clients, timeout=120)
        found = summary(asyncio.run(run(plan)))
        stop.set()
        watcher.join()
        left = settled(server)
    finally:
        stop.set()
        server.stop()
    half = len(sizes) // 2
    row = {"clients": options.clients, "seconds": round(found["seconds"]), "requests": found["requests"],
           "answered": found["answered"], "errors": sum(found["errors"].values()),
           "left_behind": sum(left.values()), "tokens_per_s": round(found["tokens_per_second"], 1),
           "ttft_p50_ms": found["milliseconds"]["ttft"]["p50"], "ttft_p99_ms": found["milliseconds"]["ttft"]["p99"],
           "between_p50_ms": found["milliseconds"]["between"]["p50"],
           "between_p99_ms": found["milliseconds"]["between"]["p99"],
           "rss_mib_after_a_minute": round(sizes[min(11, half)], 1), "rss_mib_half": round(sizes[half], 1),
           "rss_mib_end": round(sizes[-1], 1)}  # fmt: skip
    print(row, found["errors"], left)
    return [row]


async def leave(url: str, count: int) -> int:
    """Ask for a long answer, go away after its first piece; returns how many got one."""
    address, seen = urlsplit(url), 0

    async def one(i: int) -> None:
        nonlocal seen
        body = {"model": "m", "prompt": f"{i} Tell me a long story.", "max_tokens": 1000, "stream": True}
        answer = post(address, "/v1/completions", msgspec.json.encode(body))
        async for _, data in answer:
            if b"data: {" in data:
                seen += 1
                break
        await answer.aclose()

    for first in range(0, count, 20):
        await asyncio.gather(*(one(i) for i in range(first, min(first + 20, count))))
    return seen


def disconnects(options: argparse.Namespace) -> list[dict]:
    server = start_datong(options.model, options.threads, [])
    try:
        asyncio.run(leave(server.url, 50))
        before, begin = memory_mib(server), time.perf_counter()
        seen = asyncio.run(leave(server.url, options.requests))
        seconds, left = time.perf_counter() - begin, settled(server)
        answer = asyncio.run(run(Plan(server.url, "m", ["Hello"], 8, requests=1, clients=1)))
        row = {"requests": options.requests, "left_after_the_first_piece": seen, "seconds": round(seconds, 1),
               "left_behind": sum(left.values()), "answers_afterwards": sum(not a.error for a in answer),
               "rss_mib_before": round(before, 1), "rss_mib_after": round(memory_mib(server), 1)}  # fmt: skip
    finally:
        server.stop()
    print(row)
    return [row]


def kill(options: argparse.Namespace) -> list[dict]:
    """Streams under way at SIGKILL break; a new server answers. At SIGTERM they end whole, and new ones get 503."""
    rows = []
    for name in ("SIGKILL", "SIGTERM"):
        server = start_datong(options.model, options.threads, [])
        plan = Plan(server.url, "m", made_up(64, 20, 2), LONG, requests=16, clients=16, extra={"ignore_eos": True})
        late: list = []

        async def both(server: Server = server, plan: Plan = plan, name: str = name, late: list = late) -> list:
            task = asyncio.create_task(run(plan))
            await asyncio.sleep(2)
            server.process.send_signal(getattr(signal, name))
            await asyncio.sleep(0.3)
            if name == "SIGTERM":
                late += await run(Plan(server.url, "m", ["late"], 4, requests=3, clients=3))
            return await task

        answers = asyncio.run(both())
        with contextlib.suppress(Exception):
            server.process.wait(60)
        again = start_datong(options.model, options.threads, [])
        [after] = asyncio.run(run(Plan(again.url, "m", ["Hello"], 8, requests=1, clients=1)))
        again.stop()
        rows.append({"signal": name, "streams": len(answers), "whole": sum(a.tokens == LONG for a in answers),
                     "late_refused": sum(a.error.startswith("503") for a in late), "late": len(late),
                     "exit_code": server.process.returncode, "restarted_answers": int(not after.error)})  # fmt: skip
        print(rows[-1])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["load", "disconnects", "kill"])
    parser.add_argument("model")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    begun, loaded = commit(), os.getloadavg()  # now: neither this tree nor this machine stays as it is for ten minutes
    rows = {"load": load, "disconnects": disconnects, "kill": kill}[options.what](options)
    path = HERE / "results" / f"soak-{options.what}.csv"
    with path.open("w", newline="") as file:
        said = " ".join(Path(word).name for word in sys.argv[1:])
        load_text = " ".join(f"{value:.2f}" for value in loaded)
        file.write(f"# {machine()}; {options.threads} threads; {begun}; load before {load_text}; soak.py {said}\n")
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    print(path)


if __name__ == "__main__":
    main()
