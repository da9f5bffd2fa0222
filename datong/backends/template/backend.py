"""What Datong calls: questions, compiling, running. The arithmetic is in kernels.py."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datong import dtypes
from datong.backends.reference.weights import Weights, constant
from datong.backends.template.kernels import KERNELS
from datong.errors import DeviceError, Unsupported
from datong.spec.backend import API_VERSION, Cache, DeviceInfo, No, Placed, Yes
from datong.spec.caches import caches_of, check_copy, check_counts, check_step, layout, limits, tables
from datong.spec.check import check_node, check_part
from datong.spec.program import STATE_KINDS, Node, Part, Step, Value

Array = NDArray[Any]

BLOCK_SIZE = 16  # CHIP: tokens per block of the K/V cache, as your attention likes it


class TemplateBackend:
    """Answers questions and compiles; no device is needed before `compile`."""

    name = "template"  # CHIP: what users type
    api_version = API_VERSION

    def devices(self) -> list[DeviceInfo]:
        """The devices present now. CHIP: ask the driver; an empty list when it is not installed."""
        return [DeviceInfo(self.name, "the backend to copy, NumPy in this process", 0, "measured")]

    def supports(self, node: Node, values: Mapping[str, Value]) -> Yes | No:
        """Yes or a reason, per node. CHIP: say what is in the way (`head size 80; this chip takes 64, 128`)."""
        if node.op not in KERNELS:
            return No(f"operator `{node.op}` has no kernel here; there are {', '.join(sorted(KERNELS))}")
        check_node(node, values)
        return Yes(f"{self.name} {node.op}")

    def fusions(self) -> frozenset[str]:
        """No fused operators. CHIP: the compiler forms only those that are named here."""
        return frozenset()

    def compile(self, part: Part, package: str, options: Mapping[str, str]) -> TemplateExecutable:
        """Refuse what `supports` refuses, then build."""
        answers = [(node.name, self.supports(node, part.values)) for node in part.nodes]
        if reasons := [(name, answer.reason) for name, answer in answers if isinstance(answer, No)]:
            raise Unsupported(self.name, f"{len(reasons)} nodes are refused, first: {reasons[0][1]}", reasons=reasons)
        check_part(part)
        return TemplateExecutable(self.name, part, package)


class TemplateCache:
    """The caches of a part. CHIP: device memory in the layouts that your kernels read.

    Arrays by layer and kind (spec/program.py, CacheSpec): blocks `[B, kv_heads, BLOCK_SIZE, dim]`, of keys and, but for
    kinds latent and index, of values; states `[states, kv_heads, key_dim, value_dim]`.
    """

    def __init__(self, part: Part, blocks: int, window_blocks: int, states: int) -> None:
        check_counts("cache", blocks, window_blocks, states)
        self.layout, self.blocks, self._slots = layout(part.caches, dtypes.F32, BLOCK_SIZE), blocks, states
        self.limits = limits(part.caches, BLOCK_SIZE, blocks, window_blocks, states)
        self.keys: dict[tuple[int, str], Array] = {}
        self.values: dict[tuple[int, str], Array] = {}
        self.states: dict[tuple[int, str], Array] = {}
        self._shared: list[Array] = []  # what copy_block copies
        for c in part.caches:
            key = (c.layer, c.kind)
            if c.kind in STATE_KINDS:
                self.states[key] = np.zeros((states, c.kv_heads, c.key_dim, c.value_dim), np.float32)
                continue
            own = window_blocks if c.kind == "window" else 0
            shape = (own or blocks, c.kv_heads, BLOCK_SIZE)
            self.keys[key] = np.zeros((*shape, c.key_dim), np.float32)
            if c.kind in ("full", "window"):
                self.values[key] = np.zeros((*shape, c.value_dim), np.float32)
            if not own:
                self._shared += [half[key] for half in (self.keys, self.values) if key in half]

    def copy_block(self, source: int, target: int) -> None:
        """Copy one block in all layers, but for windows that have blocks of their own."""
        check_copy("cache", "block", source, target, self.blocks)
        for array in self._shared:
            array[target] = array[source]

    def copy_state(self, source: int, target: int) -> None:
        """Copy one state slot in all layers."""
        check_copy("cache", "state", source, target, self._slots)
        for array in self.states.values():
            array[target] = array[source]


class TemplateExecutable:
    """A part with its weights on the device."""

    def __init__(self, name: str, part: Part, package: str) -> None:
        self._name, self._part = name, part
        self._mapped = Weights(package, part.values, keep_bytes=0)
        weights = {n: self._mapped.operand(n) for n, v in part.values.items() if v.kind == "weight"}
        # CHIP: upload each weight once, in the layout that your kernels want; keep 4-bit ones packed. Here a stack of
        # experts stays in the file and gives one expert at a time.
        self._weights = {n: np.array(w) if isinstance(w, np.ndarray) else w for n, w in weights.items()}
        self._consts = {n: constant(v) for n, v in part.values.items() if v.kind == "const"}

    def create_cache(self, blocks: int, window_blocks: int = 0, states: int = 0) -> TemplateCache:
        """Allocate a cache. CHIP: raise DeviceError when memory is short."""
        return TemplateCache(self._part, blocks, window_blocks, states)

    def run(self, step: Step, cache: Cache | None, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run the nodes in order. CHIP: upload inputs, launch, download the outputs."""
        own = {"ids": step.ids, "positions": step.positions, "rows": step.rows}
        live: dict[str, Any] = {**self._weights, **self._consts, **own, **inputs}
        if missing := [name for name in self._part.inputs if name not in live]:
            raise DeviceError(self._name, f"input `{missing[0]}` should be given, it is not")
        if self._part.caches and not isinstance(cache, TemplateCache):
            raise DeviceError(self._name, "the part has attention and needs a cache of this backend")
        check_step(step, **(cache.limits if isinstance(cache, TemplateCache) else {}))
        for node in self._part.nodes:
            attrs: dict[str, Any] = dict(node.attrs)
            if isinstance(cache, TemplateCache):
                attrs |= self._remembered(node, step, cache)
            results = KERNELS[node.op](*(live[name] if name else None for name in node.inputs), **attrs)
            live.update(zip(node.outputs, results if isinstance(results, tuple) else (results,), strict=True))
        return {name: np.asarray(live[name], dtypes.F32.numpy) for name in self._part.outputs}

    def _remembered(self, node: Node, step: Step, cache: TemplateCache) -> dict[str, Any]:
        """What a kernel is given of the caches of its layer."""
        given: dict[str, Any] = {}
        for spec in caches_of(node, self._part.values):
            key = (spec.layer, spec.kind)
            if spec.kind in STATE_KINDS:
                given |= {"step": step, "state": cache.states[key]}
            else:
                given |= {"step": replace(step, block_tables=tables(step, spec)), "keys": cache.keys[key]}
                given |= {"values": cache.values[key]} if key in cache.values else {}
        return given

    def placement(self) -> list[Placed]:
        """Which implementation runs each node."""
        return [Placed(node.name, node.op, f"{self._name} {node.op}") for node in self._part.nodes]

    def memory(self) -> dict[str, int]:
        """Bytes by use. CHIP: count what the device holds."""
        return {
            "weights_mapped": 0,
            "weights_private": sum(w.nbytes for w in self._weights.values() if isinstance(w, np.ndarray)),
            "arena": 0,
        }
