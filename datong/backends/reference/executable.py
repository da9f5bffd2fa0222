"""A part as the reference backend runs it: node after node, each one call of spec/reference.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from datong import dtypes
from datong.backends.reference.cache import ReferenceCache, layout_of
from datong.backends.reference.weights import Stack, Weights, constant
from datong.errors import DeviceError, DtypeError, ShapeError
from datong.spec.backend import Cache, CacheLayout, Placed
from datong.spec.caches import caches_of, check_step
from datong.spec.program import ROWS, TOKENS, Node, Part, Step
from datong.spec.reference import evaluate

Array = NDArray[Any]


class ReferenceExecutable:
    """One part with its weights mapped."""

    def __init__(self, part: Part, package: str, options: Mapping[str, str]) -> None:
        self._part = part
        self._dtype = dtypes.BY_NAME.get(options.get("cache_dtype", "f32"), dtypes.I8)
        if self._dtype not in (dtypes.F32, dtypes.F16, dtypes.BF16):
            raise DeviceError("reference", f"cache_dtype should be f32, f16 or bf16, is `{options['cache_dtype']}`")
        keep = options.get("keep_mb", "256")
        if not keep.isdecimal():
            raise DeviceError("reference", f"keep_mb should be a whole number, is `{keep}`")
        self._weights = Weights(package, part.values, int(keep) * 1_000_000)
        self._consts = {n: constant(v) for n, v in part.values.items() if v.kind == "const"}
        self._last_use = {name: i for i, node in enumerate(part.nodes) for name in node.inputs}

    @property
    def cache_layout(self) -> CacheLayout:
        """What `create_cache` will make; known without allocating."""
        return layout_of(self._part.caches, self._dtype)

    def create_cache(self, blocks: int, window_blocks: int = 0, states: int = 0) -> ReferenceCache:
        """Allocate a cache, its blocks of 16 tokens."""
        return ReferenceCache(self._part.caches, self._dtype, blocks, window_blocks, states)

    def placement(self) -> list[Placed]:
        """Every node runs in NumPy."""
        return [Placed(node.name, node.op, f"numpy {node.op}") for node in self._part.nodes]

    def memory(self) -> dict[str, int]:
        """Bytes by use; there is no arena, temps are freed after their last use."""
        return {
            "weights_mapped": self._weights.mapped_bytes,
            "weights_private": self._weights.private_bytes,
            "arena": 0,
        }

    def run(self, step: Step, cache: Cache | None, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run the nodes once; outputs are f32 host arrays."""
        if cache is not None and not isinstance(cache, ReferenceCache):
            raise DeviceError("reference", f"the cache should be its own, is a {type(cache).__name__}")
        if cache is None and self._part.caches:
            raise DeviceError("reference", "the part remembers tokens and needs a cache, none was given")
        check_step(step, **(cache.limits if cache else {}))
        live = {**self._consts, **self._gather_inputs(step, inputs)}
        for i, node in enumerate(self._part.nodes):
            results = self._run_node(node, live, step, cache)
            live.update(zip(node.outputs, results, strict=True))
            for name in (*node.inputs, *node.outputs):
                if self._last_use.get(name, i) <= i and name not in self._part.outputs:
                    live.pop(name, None)
        return {name: live[name] for name in self._part.outputs}

    def _gather_inputs(self, step: Step, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Part inputs by name: the step's own, and those that the caller passes."""
        own = {"ids": step.ids, "positions": step.positions, "rows": step.rows}
        symbols = {TOKENS: len(step.ids), ROWS: len(step.rows)}
        gathered = {}
        for name in self._part.inputs:
            if name not in own and name not in inputs:
                raise ShapeError("reference", f"input `{name}` is missing")
            array, value = own[name] if name in own else inputs[name], self._part.values[name]
            shape = tuple(symbols[d] if isinstance(d, str) else d for d in value.shape)
            if array.shape != shape:
                raise ShapeError("reference", f"input `{name}` should be {list(shape)}, is {list(array.shape)}")
            if array.dtype != dtypes.BY_NAME[value.dtype].numpy:
                raise DtypeError("reference", f"input `{name}` should be {value.dtype}, is {array.dtype}")
            gathered[name] = array
        return gathered

    def _run_node(
        self, node: Node, live: Mapping[str, Array], step: Step, cache: ReferenceCache | None
    ) -> tuple[Array, ...]:
        if node.op == "embedding":
            ids, table = live[node.inputs[0]], self._part.values[node.inputs[1]]
            if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < int(table.shape[0]):
                raise DeviceError("reference", f"ids should lie in 0..{int(table.shape[0]) - 1}, go up to {ids.max()}")
            return (self._weights.rows(table.name, ids),)
        arrays: list[Any] = [self._operand(name, live) for name in node.inputs]
        attrs: dict[str, Any] = dict(node.attrs)
        if cache is not None:
            for spec in caches_of(node, self._part.values):
                attrs |= cache.operands(spec, step)
        return evaluate(node.op, arrays, attrs)

    def _operand(self, name: str, live: Mapping[str, Array]) -> Array | Stack | None:
        if not name:
            return None
        return self._weights.operand(name) if self._part.values[name].kind == "weight" else live[name]
