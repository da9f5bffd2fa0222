"""`RemoteBackend`: spec.backend.Backend whose work is done in a worker process."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from datong.backends.worker.process import Worker
from datong.errors import DeviceError
from datong.spec.backend import API_VERSION, Cache, CacheLayout, DeviceInfo, No, Placed, Yes
from datong.spec.program import Node, Part, Step, Value


class RemoteBackend:
    """A backend in a process of its own; the process starts when it is first needed, and anew after its death.

    Args:
        device: full name of the device: `sim:ascend-910b`.
        factory: `module:function`, called in the worker with `arguments`, returns the Backend.
        arguments: anything that pickles.
        devices: what `devices()` says without starting the worker; None: ask it.
        environment: variables for the worker besides ours.
    """

    api_version = API_VERSION

    def __init__(
        self,
        device: str,
        factory: str,
        arguments: tuple[Any, ...] = (),
        *,
        devices: Sequence[DeviceInfo] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = device
        self._start = (device, factory, arguments, environment)
        self._devices = None if devices is None else list(devices)
        self._worker: Worker | None = None
        self._facts: tuple[frozenset[str], frozenset[str] | None, bool] | None = None
        self._taken: dict[object, Yes] = {}

    @property
    def worker(self) -> Worker:
        """The worker, started if there is none alive."""
        if self._worker is None or not self._worker.alive:
            self._worker = Worker(*self._start)
        return self._worker

    def close(self) -> None:
        """End the worker; executables made from it no longer run. Harmless when repeated."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def devices(self) -> list[DeviceInfo]:
        """As given, or as the backend in the worker says."""
        if self._devices is None:
            self._devices = self.worker.call("devices")
        return list(self._devices)

    def fusions(self) -> frozenset[str]:
        """As the backend in the worker says."""
        return self._known()[0]

    @property
    def option_names(self) -> frozenset[str] | None:
        """As the backend in the worker says."""
        return self._known()[1]

    @property
    def whole_models_only(self) -> bool:
        """As the backend in the worker says."""
        return self._known()[2]

    def _known(self) -> tuple[frozenset[str], frozenset[str] | None, bool]:
        if self._facts is None:
            self._facts = self.worker.call("facts")
        return self._facts

    def supports(self, node: Node, values: Mapping[str, Value]) -> Yes | No:
        """As the backend in the worker says; one question for all nodes that differ in names only.

        A refusal may name the node, so that it is asked for again each time.
        """
        key = _signature(node, values)
        known = self._taken.get(key)
        if known is not None:
            return known
        used = {name: values[name] for name in (*node.inputs, *node.outputs) if name in values}
        answer: Yes | No = self.worker.call("supports", node, used)
        if isinstance(answer, Yes):
            self._taken[key] = answer
        return answer

    def compile(self, part: Part, package: str, options: Mapping[str, str]) -> RemoteExecutable:
        """Compile in the worker, which reads the weights itself."""
        worker = self.worker
        return RemoteExecutable(worker, worker.call("compile", part, package, dict(options)))


def _signature(node: Node, values: Mapping[str, Value]) -> object:
    """All that an answer may depend on: the operator, its attributes, and each operand but for its name and place."""

    def of(name: str) -> object:
        value = values.get(name)
        if value is None:
            return name == ""
        pieces = tuple((p.role, p.dtype, p.shape) for p in value.pieces)
        return value.kind, value.dtype, value.shape, value.format, pieces

    attributes = tuple(sorted((k, v) for k, v in node.attrs.items() if k != "layer"))
    return node.op, attributes, tuple(map(of, node.inputs)), tuple(map(of, node.outputs))


class RemoteExecutable:
    """An executable in the worker; freed there with this object."""

    def __init__(self, worker: Worker, number: int) -> None:
        self._worker, self._number = worker, number
        weakref.finalize(self, worker.discard, number)

    def create_cache(self, blocks: int, window_blocks: int = 0, states: int = 0) -> RemoteCache:
        """Allocate a cache in the worker."""
        made = self._worker.call("create_cache", self._number, blocks, window_blocks, states)
        return RemoteCache(self._worker, *made)

    def run(self, step: Step, cache: Cache | None, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the nodes once; the arrays cross the socket."""
        number = None
        if cache is not None:
            if not isinstance(cache, RemoteCache) or cache.worker is not self._worker:
                raise DeviceError(self._worker.device, f"the cache should be its own, is a {type(cache).__name__}")
            number = cache.number
        given = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
        outputs: dict[str, np.ndarray] = self._worker.call("run", self._number, step, number, given)
        return outputs

    def placement(self) -> list[Placed]:
        """As the executable in the worker says."""
        placed: list[Placed] = self._worker.call("placement", self._number)
        return placed

    def memory(self) -> dict[str, int]:
        """As the executable in the worker says."""
        sizes: dict[str, int] = self._worker.call("memory", self._number)
        return sizes


class RemoteCache:
    """A cache in the worker; freed there with this object."""

    def __init__(self, worker: Worker, number: int, layout: CacheLayout, blocks: int) -> None:
        self.worker, self.number, self.layout, self.blocks = worker, number, layout, blocks
        weakref.finalize(self, worker.discard, number)

    def copy_block(self, source: int, target: int) -> None:
        """Copy one block in all layers."""
        self.worker.call("copy_block", self.number, source, target)

    def copy_state(self, source: int, target: int) -> None:
        """Copy one state slot in all layers."""
        self.worker.call("copy_state", self.number, source, target)
