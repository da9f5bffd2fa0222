"""What Datong calls: questions, compiling, running. The arithmetic is in kernels.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datong import dtypes
from datong.backends.reference.weights import Weights, constant
from datong.backends.template.kernels import KERNELS
from datong.errors import DeviceError, Unsupported
from datong.spec.backend import API_VERSION, Cache, CacheLayout, DeviceInfo, No, Placed, Yes
from datong.spec.check import check_node, check_part, check_step
from datong.spec.program import Node, Part, Step, Value

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
    """A paged K/V cache. CHIP: device memory in the layout that your attention reads."""

    def __init__(self, part: Part, blocks: int) -> None:
        size = 4 * BLOCK_SIZE * sum(c.kv_heads * (c.key_dim + c.value_dim) for c in part.caches)
        self.layout, self.blocks = CacheLayout(BLOCK_SIZE, "f32", size), blocks
        self.keys = {c.layer: np.zeros((blocks, c.kv_heads, BLOCK_SIZE, c.key_dim), np.float32) for c in part.caches}
        self.values = {
            c.layer: np.zeros((blocks, c.kv_heads, BLOCK_SIZE, c.value_dim), np.float32) for c in part.caches
        }

    def copy_block(self, source: int, target: int) -> None:
        """Copy one block in all layers."""
        for name, block in (("source", source), ("target", target)):
            if not 0 <= block < self.blocks:
                raise DeviceError("cache", f"{name} block should lie in 0..{self.blocks - 1}, is {block}")
        for arrays in (self.keys, self.values):
            for array in arrays.values():
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

    def create_cache(self, blocks: int) -> TemplateCache:
        """Allocate a cache of `blocks` blocks. CHIP: raise DeviceError when memory is short."""
        return TemplateCache(self._part, blocks)

    def run(self, step: Step, cache: Cache | None, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run the nodes in order. CHIP: upload inputs, launch, download the outputs."""
        own = {"ids": step.ids, "positions": step.positions, "rows": step.rows}
        live: dict[str, Any] = {**self._weights, **self._consts, **own, **inputs}
        if missing := [name for name in self._part.inputs if name not in live]:
            raise DeviceError(self._name, f"input `{missing[0]}` should be given, it is not")
        if self._part.caches and not isinstance(cache, TemplateCache):
            raise DeviceError(self._name, "the part has attention and needs a cache of this backend")
        check_step(step, block_size=BLOCK_SIZE if cache else 0, blocks=cache.blocks if cache else 0)
        for node in self._part.nodes:
            attrs: dict[str, Any] = dict(node.attrs)
            if isinstance(cache, TemplateCache) and node.op == "attention":
                layer = attrs["layer"]
                attrs |= {"step": step, "keys": cache.keys[layer], "values": cache.values[layer]}
            results = KERNELS[node.op](*(live[name] if name else None for name in node.inputs), **attrs)
            live.update(zip(node.outputs, results if isinstance(results, tuple) else (results,), strict=True))
        return {name: np.asarray(live[name], dtypes.F32.numpy) for name in self._part.outputs}

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
