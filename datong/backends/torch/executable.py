"""A part on its device: closures over uploaded weights, called one after another for each step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datong.backends.torch import graphs
from datong.backends.torch.builder import Builder
from datong.backends.torch.cache import TorchCache, layout_of
from datong.backends.torch.dtypes import DTYPES
from datong.backends.torch.frame import Frame, Places, build, refill
from datong.backends.torch.lower import lower
from datong.backends.torch.options import Settings
from datong.backends.torch.target import Target
from datong.backends.torch.weights import WeightStore
from datong.errors import DatongError, DeviceError, DtypeError, ShapeError
from datong.spec.backend import Cache, CacheLayout, Placed
from datong.spec.caches import check_step
from datong.spec.program import ROWS, TOKENS, Part, Step

Array = NDArray[Any]
Guard = Callable[[], AbstractContextManager[object]]
_OF_STEP = ("ids", "positions", "rows")


class TorchExecutable:
    """A compiled part. Not for two threads at once.

    guard: entered around the device's part of a step, between upload and download, where nothing may wait for the host.
    """

    def __init__(
        self, part: Part, package: str, target: Target, device: torch.device, settings: Settings, guard: Guard
    ) -> None:
        self._part, self._target, self._device, self._settings, self._guard = part, target, device, settings, guard
        self._weights = WeightStore(package, part, target, device, settings.dtype)
        builder = Builder(part, target, settings, self._weights)
        self._inputs = {name: builder.write(name) for name in part.inputs}
        self._placed = []
        with torch.inference_mode(), errors(target.name, "compile"):
            for index, node in enumerate(part.nodes):
                builder.unused = []
                implementation = lower(node, builder)
                self._placed.append(Placed(node.name, node.op, implementation, unused=tuple(builder.unused)))
                builder.release(index, node)
        self._outputs = {name: builder.read(name) for name in part.outputs}
        self._closures, self._registers = builder.closures, builder.registers
        # A part in the middle takes activations from the host in every step: there is nothing to replay.
        own = all(name in _OF_STEP for name in part.inputs)
        self._graphs = settings.graphs and builder.capturable and own and bool(part.caches)
        index_dtype = DTYPES[target.index_dtype]
        self._places = Places(device, index_dtype, target.block_size, part.caches, builder.one_by_one)
        # cos and sin stay in f32, whoever computed them
        self._tables = {name for node in part.nodes if node.op == "rope" for name in node.inputs[1:]}

    @property
    def cache_layout(self) -> CacheLayout:
        """What `create_cache` will make; known without allocating."""
        return layout_of(self._part.caches, self._target, self._settings.cache_dtype)

    def create_cache(self, blocks: int, window_blocks: int = 0, states: int = 0) -> TorchCache:
        """Allocate a cache on the device. Raises DeviceError when memory is short."""
        place = self._target, self._device, self._settings.cache_dtype
        with torch.inference_mode():
            return TorchCache(self._part.caches, *place, blocks, window_blocks, states)

    def placement(self) -> list[Placed]:
        """The vendor's operator or the composed form, by node."""
        return self._placed

    def memory(self) -> dict[str, int]:
        """Bytes by use; activations come from PyTorch's own allocator."""
        return {"weights_mapped": 0, "weights_private": self._weights.nbytes, "arena": 0}

    def run(self, step: Step, cache: Cache | None, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run the nodes once; outputs are f32 host arrays."""
        if cache is not None and not isinstance(cache, TorchCache):
            raise DeviceError(self._target.name, f"the cache should be its own, is a {type(cache).__name__}")
        if cache is None and self._part.caches:
            raise DeviceError(self._target.name, "the part remembers tokens and needs a cache, none was given")
        check_step(step, **(cache.limits if cache else {}))
        self._check_inputs(step, inputs)
        with torch.inference_mode(), errors(self._target.name, f"a step of {len(step.ids)} tokens"):
            if self._settings.buckets and cache is not None and graphs.is_decode(step):
                results = self._bucketed(step, cache, inputs)
            else:
                tokens = graphs.bucket(len(step.ids)) if self._settings.buckets else 0
                frame = build(step, cache, self._places, tokens=tokens)
                results = self._execute(frame, self._upload(inputs, frame))
            return self._download(results, step)

    def _bucketed(self, step: Step, cache: TorchCache, inputs: Mapping[str, Array]) -> dict[str, Tensor]:
        """A decode step, padded; replayed where one of its shape was captured."""
        padded = graphs.pad_decode(step, cache)
        if not self._graphs:
            frame = build(padded, cache, self._places, static=True)
            return self._execute(frame, self._upload(inputs, frame))
        key = (id(self), padded.block_tables.shape, len(padded.rows))
        captured = cache.captured.get(key)
        if captured is None:  # the first time eagerly: libraries set themselves up, which cannot be recorded
            cache.captured[key] = build(padded, cache, self._places, static=True, replayed=True)
            return self._execute(cache.captured[key], {})
        frame = captured if isinstance(captured, Frame) else captured.frame
        refill(frame, padded, self._places)
        if captured is frame:
            frame.forget()
            captured = cache.captured[key] = graphs.capture(self._target, frame, lambda f: self._execute(f, {}))
        with self._guard():
            captured.graph.replay()
        outputs: dict[str, Tensor] = captured.outputs
        return outputs

    def _execute(self, frame: Frame, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Call the closures."""
        registers: list[Any] = [None] * self._registers
        frame.registers = registers
        own = {"ids": frame.ids, "positions": frame.positions, "rows": frame.rows}
        for name, register in self._inputs.items():
            registers[register] = own[name] if name in own else given[name]
        with self._guard():
            for closure in self._closures:
                closure(frame)
        outputs = {name: registers[register] for name, register in self._outputs.items()}
        frame.registers = []
        return outputs

    def _upload(self, inputs: Mapping[str, Array], frame: Frame) -> dict[str, Tensor]:
        """Outputs of earlier parts, in the compute dtype, with rows for the padding."""
        given = {}
        for name in self._inputs:
            if name in _OF_STEP:
                continue
            value = self._part.values[name]
            rows = frame.tokens if value.shape[0] == TOKENS else frame.rows.shape[0]
            array = inputs[name]
            if rows > len(array):
                array = np.concatenate([array, np.zeros((rows - len(array), *array.shape[1:]), array.dtype)])
            dtype = torch.float32 if name in self._tables else DTYPES[self._settings.dtype]
            given[name] = torch.tensor(array).to(dtype).to(self._device)
        return given

    def _download(self, results: Mapping[str, Tensor], step: Step) -> dict[str, Array]:
        """Outputs as f32 host arrays, without the padding's rows."""
        symbols = {TOKENS: len(step.ids), ROWS: len(step.rows)}
        host = {}
        for name, tensor in results.items():
            rows = symbols[str(self._part.values[name].shape[0])]
            if tensor.shape[0] != rows:
                tensor = tensor[:rows]
            host[name] = tensor.to("cpu").to(torch.float32).contiguous().numpy()
        return host

    def _check_inputs(self, step: Step, inputs: Mapping[str, Array]) -> None:
        symbols = {TOKENS: len(step.ids), ROWS: len(step.rows)}
        for name in self._part.inputs:
            if name in _OF_STEP:
                continue
            if name not in inputs:
                raise ShapeError(self._target.name, f"input `{name}` is missing")
            shape = tuple(symbols[d] if isinstance(d, str) else d for d in self._part.values[name].shape)
            if inputs[name].shape != shape:
                got = list(inputs[name].shape)
                raise ShapeError(self._target.name, f"input `{name}` should be {list(shape)}, is {got}")
            if inputs[name].dtype != np.float32:
                raise DtypeError(self._target.name, f"input `{name}` should be float32, is {inputs[name].dtype}")


@contextmanager
def errors(where: str, what: str) -> Iterator[None]:
    """PyTorch's exceptions become DeviceError: its first line says what happened."""
    try:
        yield
    except DatongError:
        raise
    except (RuntimeError, NotImplementedError, MemoryError) as error:
        text = (str(error).splitlines() or [type(error).__name__])[0]
        hint = "a smaller context, or fewer tokens per step" if "memory" in text.lower() else None
        raise DeviceError(where, f"{what} should run, PyTorch says: {text}", hint) from error
