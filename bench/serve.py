"""`datong serve` under load: throughput beside llama-cpp-python's server, the prefix cache, JSON that must be valid.

    python bench/serve.py throughput MODEL.gguf [--peer-python path/to/python/with/llama_cpp.server] [--clients 1,4,16]
    python bench/serve.py prefix MODEL.gguf
    python bench/serve.py json MODEL.gguf [--requests 200]

Servers are child processes with the same GGUF and threads, asked one after the other, A B A B …; every request is a
stream of exactly `--tokens` tokens (the end token is forbidden), so chunks count. llama-cpp-python's server answers one
request at a time; it is what pip installs, not llama.cpp's own llama-server. The client shares the processor with the
servers. `--quiet` says that nothing else ran: without it the CSV says `busy machine`, and its numbers are no claim.
"""

import argparse
import asyncio
import csv
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
from compare import HERE, commit, machine

from datong.cli.bench_serve import made_up
from datong.server.loadtest import Plan, run, summary

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "city": {"type": "string", "maxLength": 40},
        "hobbies": {"type": "array", "items": {"type": "string", "maxLength": 30}, "maxItems": 4},
    },
    "required": ["name", "age", "city", "hobbies"],
    "additionalProperties": False,
}


@dataclass
class Server:
    """A child process that speaks the OpenAI API."""

    name: str
    process: subprocess.Popen
    url: str

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(30)


def start_datong(model: str, threads: int, extra: list[str]) -> Server:
    log = tempfile.NamedTemporaryFile("w+", suffix=".log")  # noqa: SIM115  # lives as long as the server
    command = [sys.executable, "-m", "datong", "serve", model, "--port", "0", "--threads", str(threads), *extra]
    process = subprocess.Popen([*command, "--name", "m"], stderr=log)
    while process.poll() is None:
        if found := re.search(r" at (http\S+)/v1", Path(log.name).read_text()):
            return Server("datong", process, found[1])
        time.sleep(0.1)
    sys.exit(Path(log.name).read_text())


def start_peer(python: str, model: str, threads: int) -> Server:
    port = 18_734
    process = subprocess.Popen(
        [python, "-m", "llama_cpp.server", "--model", model, "--model_alias", "m", "--port", str(port), "--n_ctx",
         "4096", "--n_threads", str(threads), "--n_threads_batch", str(threads), "--interrupt_requests", "false"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    while process.poll() is None:
        try:
            if httpx.get(f"{url}/v1/models").status_code == 200:
                return Server("llama-cpp-python", process, url)
        except httpx.TransportError:
            time.sleep(0.2)
    sys.exit("the peer's server ended early")


def load(url: str, count: int, turns: int, tokens: int, salt: int) -> dict:
    """What `count` clients saw, each of whose answers has exactly `tokens` tokens."""
    texts = made_up(count * turns, 100, salt)
    no_end = {"logit_bias": {"2": -100, "0": -100}}
    plan = Plan(url, "m", texts, tokens, requests=count * turns, clients=count, extra=no_end)
    found = summary(asyncio.run(run(plan)))
    if found["errors"]:
        sys.exit(f"{url}: {found['errors']}")
    return found


def throughput(options: argparse.Namespace) -> None:
    servers = [start_datong(options.model, options.threads, [])]
    if options.peer_python:
        servers.append(start_peer(options.peer_python, options.model, options.threads))
    rows = []
    try:
        for count in options.clients:
            turns = max(1, options.answers // count)
            seen: dict[str, list[float]] = {server.name: [] for server in servers}
            last: dict[str, dict] = {}
            for round_ in range(options.rounds + 1):
                for server in servers if round_ % 2 else servers[::-1]:
                    found = load(server.url, count, turns, options.tokens, round_)
                    if round_:  # the first is a warm-up
                        seen[server.name].append(found["tokens_per_second"])
                        last[server.name] = found["milliseconds"]
            for name, rates in seen.items():
                times = last[name]
                row = {"clients": count, "server": name, "tokens_per_s": round(statistics.median(rates), 1),
                       "least": round(min(rates), 1), "most": round(max(rates), 1),
                       "ttft_p50_ms": times["ttft"]["p50"], "ttft_p99_ms": times["ttft"]["p99"],
                       "between_p50_ms": times["between"]["p50"],
                       "between_p99_ms": times["between"]["p99"]}  # fmt: skip
                rows.append(row)
                print(row, flush=True)
    finally:
        for server in servers:
            server.stop()
    save(options, "throughput", rows)


def save(options: argparse.Namespace, what: str, rows: list[dict]) -> None:
    path = HERE / "results" / f"serve-{what}-{Path(options.model).stem}-{options.threads}t.csv"
    with path.open("w", newline="") as file:
        said = " ".join(Path(word).name for word in sys.argv[1:])  # paths are this machine's own business
        state = "quiet machine" if options.quiet else "busy machine: no claim"
        file.write(f"# {machine()}; {options.threads} threads; {commit()}; {state}; {said}\n")
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    print(path)


def prefix(options: argparse.Namespace) -> None:
    """The second request of two that share 1,500 tokens."""
    server = start_datong(options.model, options.threads, [])
    rows = []
    try:
        for round_ in range(options.rounds):
            ids = [(i * 7919 + 13 + round_ * 101) % 40000 + 100 for i in range(1500)]
            times = []
            for tail in (1, 2):
                prompt = [*ids, *range(500 * tail, 500 * tail + 20)]
                [answer] = asyncio.run(run(Plan(server.url, "m", [prompt], 1, requests=1, clients=1)))
                times.append(answer.first - answer.begin)
            rows.append({"round": round_, "first_ms": round(1e3 * times[0], 1), "second_ms": round(1e3 * times[1], 1),
                         "ratio": round(times[0] / times[1], 1)})  # fmt: skip
            print(rows[-1])
    finally:
        server.stop()
    save(options, "prefix", rows)


def json_schema(options: argparse.Namespace) -> None:
    """Answers at temperature 1 against an independent validator."""
    import jsonschema

    server = start_datong(options.model, options.threads, [])
    body = {"model": "m", "temperature": 1.0, "max_tokens": 300, "response_format": {
        "type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}}}  # fmt: skip

    async def ask(client: httpx.AsyncClient, seed: int) -> bool:
        prompt = [{"role": "user", "content": f"Invent person {seed} and describe them as JSON."}]
        answer = await client.post("/v1/chat/completions", json={**body, "messages": prompt, "seed": seed})
        choice = answer.json()["choices"][0]
        try:
            jsonschema.validate(json.loads(choice["message"]["content"]), PERSON)
        except (ValueError, jsonschema.ValidationError) as error:
            print(choice["finish_reason"], error, choice["message"]["content"][:200])
            return False
        return True

    async def everything() -> list[bool]:
        limits = httpx.Limits(max_connections=32)
        async with httpx.AsyncClient(base_url=server.url, timeout=600, limits=limits) as client:
            return await asyncio.gather(*(ask(client, seed) for seed in range(options.requests)))

    try:
        begin = time.perf_counter()
        good = asyncio.run(everything())
        print(f"{sum(good)} of {len(good)} valid in {time.perf_counter() - begin:.1f} s")
    finally:
        server.stop()
    sys.exit(not all(good))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["throughput", "prefix", "json"])
    parser.add_argument("model")
    parser.add_argument("--peer-python")
    parser.add_argument("--clients", type=lambda text: [int(n) for n in text.split(",")], default=[1, 4, 16, 64])
    parser.add_argument("--answers", type=int, default=32, help="per round, at least one per client")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quiet", action="store_true", help="nothing else ran on this machine")
    options = parser.parse_args()
    {"throughput": throughput, "prefix": prefix, "json": json_schema}[options.what](options)


if __name__ == "__main__":
    main()
