"""A C plug-in as a Backend: any shared library that speaks `native/include/datong/backend.h`.

`PluginBackend(path)` loads it through `datong._native`, turns parts into the header's structs and errors into ours. It
knows no chip: what a plug-in can do is asked of the plug-in.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from weakref import WeakValueDictionary

import numpy as np

from datong import _native, dtypes
from datong.errors import AbiMismatch, BackendMissing, DeviceError, DtypeError, ShapeError, Unsupported
from datong.spec.backend import CacheLayout, DeviceInfo, Limits, No, NodeTime, Placed, Yes
from datong.spec.program import ROWS, TOKENS, Node, Part, Program, Slot, Step, Value

# Enums of backend.h.
_KINDS = {"input": 1, "weight": 2, "const": 3, "temp": 4}
_CACHES = {"full": 0, "window": 0, "latent": 1, "index": 2, "recurrent": 3, "conv": 4}  # dt_cache_kind
_SWAPPED = 256  # added to the kind: kSwapped of native/python/part.h
_DIMS = {TOKENS: -1, ROWS: -2}
_ARENAS = {TOKENS: 1, ROWS: 2}
_UNSUPPORTED = 2  # DT_UNSUPPORTED
_DTYPE_NAMES = {d.c: d.name for d in dtypes.ALL}

_OF_DEVICE = ("threads", "isa")  # options of opening a device; the others are of compiling
_OF_STEP = ("ids", "positions", "rows")  # part inputs that come with the step
_STEP_ARRAYS = (
    ("ids", np.int64, 1),
    ("positions", np.int64, 1),
    ("query_starts", np.int64, 1),
    ("context_lens", np.int64, 1),
    ("block_tables", np.int32, 2),
    ("rows", np.int64, 1),
)


class PluginBackend:
    """One loaded plug-in. Raises BackendMissing if `path` is no plug-in, AbiMismatch if it speaks another version.

    `option_names`: the options that it knows; None: it is given all, and says itself which it does not know.
    """

    def __init__(
        self, path: str | os.PathLike[str], evidence: str = "not run", option_names: Collection[str] | None = None
    ) -> None:
        where = f"plug-in {Path(path).name}"
        try:
            self._plugin = _native.Plugin(os.fspath(path))
        except _native.PluginMissingError as error:
            hint = (
                "build it with -shared -fPIC against native/include/datong/backend.h and export datong_backend_get_api"
            )
            raise BackendMissing(where, str(error), hint) from None
        except _native.PluginMismatchError as error:
            raise AbiMismatch(where, str(error), "rebuild the plug-in against this Datong's backend.h") from None
        self.name: str = self._plugin.name
        self.api_version: tuple[int, int] = self._plugin.version
        self.option_names = None if option_names is None else frozenset(option_names)
        self.step_tokens: Callable[[Program], int] | None = (
            None  # for spec.backend.step_tokens; the header has no word for it
        )
        self._evidence = evidence
        self._devices: WeakValueDictionary[tuple[tuple[str, str], ...], _native.Device] = WeakValueDictionary()

    def devices(self) -> list[DeviceInfo]:
        """Devices that the plug-in sees now."""
        with _errors(self.name):
            rows = self._plugin.devices()
        return [DeviceInfo(name, text, memory, self._evidence, attributes) for name, text, memory, attributes in rows]

    def fusions(self) -> frozenset[str]:
        """Names of the fused operators that the plug-in claims."""
        return frozenset(self._plugin.fusions())

    def supports(self, node: Node, values: Mapping[str, Value]) -> Yes | No:
        """Ask the plug-in about one node."""
        names = list(dict.fromkeys(name for name in (*node.inputs, *node.outputs) if name))
        index = {name: i for i, name in enumerate(names)}
        try:
            rows = [_value_row(values[name], "", None) for name in names]
            row = _node_row(node, index)
        except Unsupported as error:
            return No(error.message)
        with _errors(self.name):
            yes, text = self._plugin.supports(row, rows)
        return Yes(text) if yes else No(text)

    def compile(self, part: Part, package: str, options: Mapping[str, str]) -> PluginExecutable:
        """Give the part to the plug-in. Raises Unsupported with every refused node, or DeviceError."""
        names = list(part.values)
        index = {name: i for i, name in enumerate(names)}
        arena = part.arena_bytes
        try:
            values = [_value_row(part.values[name], package, part.slots.get(name)) for name in names]
            nodes = [_node_row(node, index) for node in part.nodes]
            with _errors(self.name):
                program = self._open({k: v for k, v in options.items() if k in _OF_DEVICE}).compile(
                    values,
                    nodes,
                    [index[name] for name in part.inputs],
                    [index[name] for name in part.outputs],
                    [(c.layer, c.kv_heads, c.key_dim, c.value_dim, c.window, _CACHES[c.kind]) for c in part.caches],
                    arena.get(TOKENS, 0),
                    arena.get(ROWS, 0),
                    [(k, str(v)) for k, v in options.items() if k not in _OF_DEVICE],
                )
        except Unsupported as error:
            answers = [(node.name, self.supports(node, part.values)) for node in part.nodes]
            error.reasons = [(name, answer.reason) for name, answer in answers if isinstance(answer, No)]
            raise
        return PluginExecutable(self.name, program, part)

    def check_options(self, options: Mapping[str, str]) -> None:
        """Raises DeviceError if device 0 cannot be opened with these options."""
        with _errors(self.name):
            self._plugin.open_device(0, sorted(options.items()))

    def limits(self, nbytes: int, options: Mapping[str, str] | None = None) -> Limits:
        """Measure what device 0 can do at best, reading `nbytes` of memory. Raises DeviceError, Unsupported."""
        with _errors(self.name):
            device = self._open({k: v for k, v in (options or {}).items() if k in _OF_DEVICE})
            return Limits(*device.limits(nbytes))

    def _open(self, options: Mapping[str, str]) -> _native.Device:
        """Device 0 with these options; parts with the same options share it, and so its threads."""
        key = tuple(sorted((k, str(v)) for k, v in options.items()))
        device = self._devices.get(key)
        if device is None:
            device = self._devices[key] = self._plugin.open_device(0, list(key))
        return device


class PluginExecutable:
    """A compiled part. Not for two threads at once."""

    def __init__(self, backend: str, program: _native.Program, part: Part) -> None:
        self._backend, self._program = backend, program
        self._nodes = [(node.name, node.op) for node in part.nodes]
        self._inputs = tuple(name for name in part.inputs if name not in _OF_STEP)
        self._outputs = part.outputs

    def create_cache(self, blocks: int, window_blocks: int = 0, states: int = 0) -> PluginCache:
        """Allocate a cache. Raises DeviceError."""
        with _errors(self._backend):
            block_size, dtype, *sizes = self._program.cache_layout()
            cache = self._program.create_cache(blocks, window_blocks, states)
        return PluginCache(self._backend, cache, CacheLayout(block_size, _DTYPE_NAMES[dtype], *sizes), blocks)

    def run(self, step: Step, cache: PluginCache | None, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the part once.

        Args:
            step: arrays as spec/program.py says.
            cache: of this executable; None for a part without attention.
            inputs: outputs of earlier parts by name, f32 `[T, …]` or `[R, …]`.

        Returns:
            Every output by name, f32; views of the program's memory, valid until the next run.

        Raises:
            DeviceError: the plug-in refused the step (an id or block out of range, …).
            ShapeError, DtypeError: an array is not what Step says.
        """
        try:
            results = self._program.run(
                step.ids,
                step.positions,
                step.query_starts,
                step.context_lens,
                step.block_tables,
                step.rows,
                None if cache is None else cache.handle,
                [inputs[name] for name in self._inputs] if self._inputs else [],
                step.window_tables,
                step.state_slots,
            )
        except _native.CallError as error:
            raise _converted(error, self._backend) from None
        except (TypeError, KeyError) as error:
            _check_arrays(step, inputs, self._inputs)
            raise DtypeError("run", f"arrays should fit the step, the plug-in's glue says {error}") from error
        return dict(zip(self._outputs, results, strict=True))

    def placement(self) -> list[Placed]:
        """What runs each node."""
        with _errors(self._backend):
            return [Placed(name, op, self._program.node_implementation(i)) for i, (name, op) in enumerate(self._nodes)]

    def profile(self, on: bool) -> None:
        """Time the nodes from now on, or no longer. Raises Unsupported."""
        with _errors(self._backend):
            self._program.profile(on)

    def times(self) -> list[NodeTime]:
        """What each node has taken since `profile(True)`."""
        with _errors(self._backend):
            rows = [self._program.node_time(i) for i in range(len(self._nodes))]
        return [NodeTime(runs, total / 1e9, begin / 1e9, last / 1e9) for runs, total, begin, last in rows]

    def memory(self) -> dict[str, int]:
        """Bytes of weights used from the mapped files, of private copies, and of activations."""
        with _errors(self._backend):
            mapped, private, arena = self._program.memory()
        return {"weights_mapped": mapped, "weights_private": private, "arena": arena}


class PluginCache:
    """A cache in the plug-in's memory."""

    def __init__(self, backend: str, handle: _native.Cache, layout: CacheLayout, blocks: int) -> None:
        self._backend = backend
        self.handle, self.layout, self.blocks = handle, layout, blocks

    def copy_block(self, source: int, target: int) -> None:
        """Copy one block in all layers. Raises DeviceError for a block that does not exist."""
        with _errors(self._backend):
            self.handle.copy_block(source, target)

    def copy_state(self, source: int, target: int) -> None:
        """Copy one state slot in all layers. Raises DeviceError for a slot that does not exist."""
        with _errors(self._backend):
            self.handle.copy_state(source, target)


# ---- rows of native/python/part.h ------------------------------------------------------------------------------------


def _value_row(value: Value, package: str, slot: Slot | None) -> tuple[object, ...]:
    """A ValueRow. Raises Unsupported for a dtype or dim that the header cannot say."""
    dtype = dtypes.BY_NAME.get(value.dtype)
    if dtype is None or value.kind not in _KINDS:
        raise Unsupported("plug-in", f"value `{value.name}` has dtype `{value.dtype}` and kind `{value.kind}`")
    pieces = [
        (
            piece.role,
            os.path.join(package, piece.file),
            piece.offset,
            piece.length,
            dtypes.BY_NAME[piece.dtype].c,
            list(piece.shape),
        )
        for piece in value.pieces
    ]
    data = np.asarray(value.data, dtype.numpy).tobytes() if value.kind == "const" else b""
    arena = (_ARENAS[slot.arena], slot.offset, slot.size) if slot else (0, 0, 0)
    dims = [_DIMS[d] if isinstance(d, str) else d for d in value.shape]
    kind = _KINDS[value.kind] + (_SWAPPED if value.swapped else 0)
    return (value.name, kind, dtype.c, dims, value.format, pieces, data, *arena)


def _node_row(node: Node, index: Mapping[str, int]) -> tuple[object, ...]:
    """A NodeRow; absent inputs become -1. Raises Unsupported for an attribute that the header cannot carry."""
    attrs: list[tuple[str, int, int, float, str]] = []
    for name, value in node.attrs.items():
        if isinstance(value, int):  # bool too
            attrs.append((name, ord("i"), int(value), 0.0, ""))
        elif isinstance(value, float):
            attrs.append((name, ord("f"), 0, value, ""))
        elif isinstance(value, str):
            attrs.append((name, ord("s"), 0, 0.0, value))
        else:
            raise Unsupported("plug-in", f"attribute `{name}` of node `{node.name}` is a list; version 1.0 has none")
    inputs = [index[name] if name else -1 for name in node.inputs]
    return (node.op, node.name, inputs, [index[name] for name in node.outputs], attrs)


# ---- errors ----------------------------------------------------------------------------------------------------------


def _converted(error: _native.CallError, backend: str) -> Unsupported | DeviceError:
    """Our exception for a plug-in's error; its text may begin with `[where] `."""
    code, text = error.args
    where, message = backend, text
    if text.startswith("[") and "] " in text:
        where, message = text[1:].split("] ", 1)
    return (Unsupported if code == _UNSUPPORTED else DeviceError)(where, message)


@contextmanager
def _errors(backend: str) -> Iterator[None]:
    try:
        yield
    except _native.CallError as error:
        raise _converted(error, backend) from None


def _check_arrays(step: Step, inputs: Mapping[str, np.ndarray], wanted: Sequence[str]) -> None:
    """Say which array the glue could not take."""
    arrays: list[tuple[str, object, type, int | None]] = [
        (name, getattr(step, name), dtype, rank) for name, dtype, rank in _STEP_ARRAYS
    ]
    for name in wanted:
        if name not in inputs:
            raise ShapeError("run", f"input `{name}` of the part is wanted, it did not come")
        arrays.append((name, inputs[name], np.float32, None))
    for name, array, dtype, rank in arrays:
        expected = np.dtype(dtype)
        if not isinstance(array, np.ndarray) or array.dtype != expected:
            got = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
            raise DtypeError("run", f"`{name}` should be a NumPy array of {expected}, {got} came")
        if (rank is not None and array.ndim != rank) or not array.flags.c_contiguous:
            raise ShapeError("run", f"`{name}` should be C-contiguous with rank {rank}, shape {array.shape} came")
