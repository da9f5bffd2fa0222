"""Our side of one worker: the child process, its socket, and the thread that talks to it.

The thread does all input and output, because Python delivers Ctrl-C to the main thread only: a caller may be
interrupted while it waits, and the conversation stays in step. The worker ends when our end of the socket closes,
which the kernel does for us if we die, so no worker outlives its parent.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import datong
from datong.backends.worker import wire
from datong.errors import BackendError, DatongError, DeviceError

_PATIENCE = 5.0  # seconds that a worker has to end after its socket closed


class _Call:
    """One question on its way."""

    def __init__(self, buffers: wire.Buffers) -> None:
        self.buffers = buffers
        self.done = threading.Event()
        self.ok = False
        self.reply: list[bytearray] = []
        self.failure: str | None = None


class Worker:
    """A running worker.

    Args:
        device: what errors call it.
        factory: `module:function`, called in the worker with `arguments`, returns the Backend.
        environment: variables for the worker besides ours.
    """

    def __init__(
        self, device: str, factory: str, arguments: tuple[Any, ...], environment: Mapping[str, str] | None = None
    ) -> None:
        self.device = device
        self._owner = os.getpid()
        self._process, end = _spawn(device, environment or {})
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        self._garbage: deque[int] = deque()
        thread = threading.Thread(
            target=_talk, args=(end, self._process, self._calls), name=f"worker {device}", daemon=True
        )
        self.close = weakref.finalize(self, _close, self._owner, self._process, end, self._calls)
        thread.start()
        try:
            self.call("create", device, factory, arguments)
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """Of the child process."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Is the child process running?"""
        return bool(self.close.alive) and self._process.poll() is None

    def discard(self, number: int) -> None:
        """The object is no longer needed there; told with the next call. Safe in finalizers."""
        self._garbage.append(number)

    def call(self, verb: str, *arguments: Any) -> Any:
        """Ask, wait, and return or raise what the worker returned or raised. DeviceError when it is dead."""
        if os.getpid() != self._owner:
            raise DeviceError(
                self.device,
                f"the worker should be asked by process {self._owner} that started it, process {os.getpid()} asks",
                "open the model after the fork",
            )
        if not self.close.alive:
            raise DeviceError(self.device, "the worker should be running, it was closed", "open the model again")
        gone = [self._garbage.popleft() for _ in range(len(self._garbage))]
        call = _Call(wire.pack((gone, verb, arguments)))
        self._calls.put(call)
        call.done.wait()
        if call.failure is not None:
            raise DeviceError(
                self.device,
                f"the worker process should answer `{verb}`, {call.failure}",
                "its last words are on stderr; open the model again to start a new one",
            )
        answer = wire.unpack(call.reply)
        if isinstance(answer, DatongError):
            raise answer
        return answer


def _spawn(device: str, environment: Mapping[str, str]) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Start the child with one end of a socket pair; its stdout joins our stderr, so that ours holds data only."""
    ours, theirs = socket.socketpair()
    roots = [str(Path(datong.__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, roots)), **environment}
    command = [sys.executable, "-P", "-m", "datong.backends.worker", str(theirs.fileno())]
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=2, env=environment, pass_fds=[theirs.fileno()]
        )
    except OSError as error:
        ours.close()
        raise BackendError(device, f"the worker `{command[0]}` should start, got: {error.strerror}") from error
    finally:
        theirs.close()
    return process, ours


def _talk(end: socket.socket, process: subprocess.Popen[bytes], calls: SimpleQueue[_Call | None]) -> None:
    """Carry out calls until None comes; after the worker's death each call fails with how it died."""
    failure: str | None = None
    while (call := calls.get()) is not None:
        if failure is None:
            try:
                wire.send(end, call.buffers)
                call.reply = wire.receive(end)
            except wire.Closed:
                failure = _death(process)
            except Exception as error:  # nobody may wait forever for a thread that is gone
                failure = f"talking to it failed with {type(error).__name__}: {error}"
        call.failure = failure
        call.buffers = []
        call.done.set()
        del call  # an answer may be large; do not keep it until the next one


def _death(process: subprocess.Popen[bytes]) -> str:
    try:
        code = process.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return "it closed its socket"
    if code >= 0:
        return f"it ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"it was ended by {name}"


def _close(owner: int, process: subprocess.Popen[bytes], end: socket.socket, calls: SimpleQueue[_Call | None]) -> None:
    """End the worker: its socket reads end of file. A fork of ours has the same objects and must not do it."""
    if os.getpid() != owner:
        end.close()
        return
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    calls.put(None)
    try:
        process.wait(_PATIENCE)
    except subprocess.TimeoutExpired:  # in the middle of a long step
        process.kill()
        process.wait()
    end.close()
