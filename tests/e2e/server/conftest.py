"""Live servers in child processes, and clients for them."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

COMMAND = [sys.executable, "-c", "from datong.cli import main; main()", "serve"]
WAIT = 60.0  # seconds for anything that must happen


class Live:
    """A running server. `lines` is its log, decoded."""

    def __init__(self, *args: object, env: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [*COMMAND, "--port", "0", "--threads", "1", *map(str, args)],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **env},
        )
        self.lines: list[dict[str, Any]] = []
        self.other: list[str] = []
        self.url = ""
        self.http = httpx.Client(timeout=WAIT)
        self._ready = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        assert self._ready.wait(WAIT) and self.url, self.other
        until(lambda: any(line["event"] == "started" for line in self.lines))

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if line.startswith("{"):
                self.lines.append(json.loads(line))
                continue
            self.other.append(line)
            if found := re.search(r" at (http\S+)/v1", line):
                self.url = found[1]
                self._ready.set()
        self._ready.set()

    def client(self, **options: Any) -> openai.OpenAI:
        """The official client."""
        return openai.OpenAI(**{"base_url": f"{self.url}/v1", "api_key": "none", "max_retries": 0, **options})

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.http.get(self.url + path, **options)

    def post(self, path: str, **options: Any) -> httpx.Response:
        return self.http.post(self.url + path, **options)

    def metric(self, name: str) -> float:
        """Sum over the labels."""
        found = re.findall(rf"^{name}(?:\{{[^}}]*\}})? (\S+)$", self.get("/metrics").text, re.MULTILINE)
        assert found, name
        return sum(map(float, found))

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        self.http.close()
        code = self.process.wait(WAIT)
        self._reader.join(WAIT)
        assert self.process.stderr is not None
        self.process.stderr.close()
        return code


def until(true: Callable[[], object]) -> None:
    """Wait until it holds."""
    end = time.monotonic() + WAIT
    while not true():
        assert time.monotonic() < end, "it never came to be"
        time.sleep(0.02)


@pytest.fixture(scope="session")
def until_true() -> Callable[[Callable[[], object]], None]:
    return until


@pytest.fixture(scope="session")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Live]]:
    """`serve(package, "--flag", …, env={…})`; what still runs is stopped at the end."""
    running: list[Live] = []
    cache = {"DATONG_CACHE": str(tmp_path_factory.mktemp("cache")), "DATONG_API_KEYS": ""}

    def start(*args: object, env: dict[str, str] | None = None) -> Live:
        running.append(Live(*args, env={**cache, **(env or {})}))
        return running[-1]

    yield start
    for live in running:
        live.stop()


@pytest.fixture(scope="session")
def live(serve: Callable[..., Live], package_template: Path) -> Live:
    """One server of the tiny model for all tests that leave it as it was."""
    return serve(package_template)


@pytest.fixture(scope="session")
def wide_package(checkpoint_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a context of 2,048 tokens."""
    from datong.package.create import import_checkpoint

    source = Path(shutil.copytree(checkpoint_template, tmp_path_factory.mktemp("wide") / "tiny"))
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 2048}))
    return import_checkpoint(source).root


@pytest.fixture(scope="session")
def client(live: Live) -> Iterator[openai.OpenAI]:
    with live.client() as found:
        yield found


@pytest.fixture(scope="session")
def offline(package_template: Path) -> Any:
    """The same model in this process."""
    import datong

    return datong.load(package_template, threads=1)
