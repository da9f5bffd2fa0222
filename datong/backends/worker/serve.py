"""The worker's side: one Backend, the executables and caches made from it, and a loop that answers questions.

A request is (numbers of objects that are no longer needed, verb, arguments); the answer is a value or an exception.
"""

from __future__ import annotations

import itertools
import socket
from collections.abc import Mapping
from importlib.metadata import EntryPoint
from typing import Any

import numpy as np

from datong.backends.worker import wire
from datong.errors import BackendError, DatongError, DeviceError
from datong.spec.backend import Backend, Cache, CacheLayout, DeviceInfo, Executable, No, Placed, Yes, option_names
from datong.spec.program import Node, Part, Step, Value


class Server:
    """What the worker holds; each method is a verb."""

    def __init__(self) -> None:
        self.device = "worker"
        self._backend: Backend | None = None
        self._objects: dict[int, Any] = {}
        self._numbers = itertools.count(1)

    @property
    def backend(self) -> Backend:
        """Made by `create`, which comes first."""
        if self._backend is None:
            raise DeviceError(self.device, "the worker should be told what to make first, it was not")
        return self._backend

    def answer(self, request: tuple[list[int], str, tuple[Any, ...]]) -> Any:
        """Carry out one request."""
        gone, verb, arguments = request
        for number in gone:
            self._objects.pop(number, None)
        return getattr(self, verb)(*arguments)

    def create(self, device: str, factory: str, arguments: tuple[Any, ...]) -> None:
        """Import the factory and call it."""
        self.device = device
        try:
            backend = EntryPoint(device, factory, "datong.backends").load()(*arguments)
        except DatongError:
            raise
        except Exception as error:
            raise BackendError(
                device, f"`{factory}` should make the backend, got {type(error).__name__}: {error}"
            ) from error
        if not isinstance(backend, Backend):
            raise BackendError(device, f"`{factory}` should make a backend, made a {type(backend).__name__}")
        self._backend = backend

    def facts(self) -> tuple[frozenset[str], frozenset[str] | None, bool]:
        """Fusions, names of options, and whether only whole models run."""
        backend = self.backend
        return backend.fusions(), option_names(backend), bool(getattr(backend, "whole_models_only", False))

    def devices(self) -> list[DeviceInfo]:
        """As the backend says."""
        return self.backend.devices()

    def supports(self, node: Node, values: Mapping[str, Value]) -> Yes | No:
        """As the backend says."""
        return self.backend.supports(node, values)

    def compile(self, part: Part, package: str, options: Mapping[str, str]) -> int:
        """Make an executable; its number stands for it."""
        return self._keep(self.backend.compile(part, package, options))

    def create_cache(self, number: int, blocks: int, window_blocks: int, states: int) -> tuple[int, CacheLayout, int]:
        """Make a cache: its number, layout and blocks."""
        cache = self._executable(number).create_cache(blocks, window_blocks, states)
        return self._keep(cache), cache.layout, cache.blocks

    def copy_block(self, number: int, source: int, target: int) -> None:
        """As the cache does."""
        cache: Cache = self._objects[number]
        cache.copy_block(source, target)

    def copy_state(self, number: int, source: int, target: int) -> None:
        """As the cache does."""
        cache: Cache = self._objects[number]
        cache.copy_state(source, target)

    def run(
        self, number: int, step: Step, cache: int | None, inputs: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """As the executable does."""
        return self._executable(number).run(step, None if cache is None else self._objects[cache], inputs)

    def placement(self, number: int) -> list[Placed]:
        """As the executable says."""
        return self._executable(number).placement()

    def memory(self, number: int) -> dict[str, int]:
        """As the executable says."""
        return self._executable(number).memory()

    def _executable(self, number: int) -> Executable:
        found: Executable = self._objects[number]
        return found

    def _keep(self, made: object) -> int:
        number = next(self._numbers)
        self._objects[number] = made
        return number


def serve(end: socket.socket) -> None:
    """Answer until the other end closes."""
    server = Server()
    while True:
        try:
            request = wire.unpack(wire.receive(end))
        except wire.Closed:
            return
        try:
            reply = wire.pack(server.answer(request))
        except Exception as error:  # the caller's to handle: it must reach him, whatever it is
            reply = wire.pack_error(error, server.device)
        request = None
        try:
            wire.send(end, reply)
        except wire.Closed:
            return
