"""Runs a vendor's tool: no shell, no input, a bounded answer in bounded time."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

SECONDS = 15.0  # npu-smi asks every card in turn; with 16 of them it takes seconds
BYTES = 1 << 18  # a table of 64 devices is 16 KB


@dataclass(frozen=True)
class Output:
    """How a tool ended, and what it wrote to stdout."""

    state: Literal["ok", "absent", "failed", "hung"]
    text: str = ""
    detail: str = ""  # `exit 1: …`


def run_tool(command: Sequence[str], seconds: float = SECONDS, limit: int = BYTES) -> Output:
    """Run `command` (an argument list) and return what it printed. Never raises, never waits longer than `seconds`."""
    try:
        child = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "LC_ALL": "C"},
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        return Output("failed", "", f"it could not be started: {error}")
    try:
        text, complete, full = _collect(child, time.monotonic() + seconds, limit)
        if not complete:
            why = f"it printed more than {limit} bytes" if full else f"it did not end within {seconds:.0f} s"
            return Output("hung", text, why)
        if child.returncode:
            last = text.strip().splitlines()[-1:] or [""]
            return Output("failed", text, f"exit {child.returncode}: {last[0][:200]}")
        return Output("ok", text)
    finally:
        _end(child)


def _collect(child: subprocess.Popen[bytes], until: float, limit: int) -> tuple[str, bool, bool]:
    """What the child writes, whether it ended by itself within time and size, and whether size was the matter."""
    assert child.stdout is not None  # PIPE was asked for
    handle, parts, size, ended = child.stdout.fileno(), [], 0, False
    os.set_blocking(handle, False)
    with selectors.DefaultSelector() as waiting:
        waiting.register(handle, selectors.EVENT_READ)
        while size < limit and not ended and waiting.select(max(0.0, until - time.monotonic())):
            part = os.read(handle, 65536)
            parts.append(part)
            size, ended = size + len(part), not part
    if ended:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(max(0.1, until - time.monotonic()))
    text = b"".join(parts)[:limit].decode("utf-8", "replace")
    return text, ended and child.returncode is not None, size >= limit


def _end(child: subprocess.Popen[bytes]) -> None:
    """Kill what is left of it. A tool stuck inside the driver cannot be killed: it is not waited for."""
    if child.returncode is None:
        with contextlib.suppress(OSError):
            os.killpg(child.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(1.0)
    if child.stdout is not None:
        child.stdout.close()
    if child.returncode is None:
        child.returncode = -signal.SIGKILL  # else Popen warns when it is collected
