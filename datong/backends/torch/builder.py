"""Compile time: nodes become closures over device tensors and registers, in one flat list.

A register is an index into `Frame.registers`; it is used again after the last reader of its value, so that activations
are freed as early as they would be by hand.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from datong.backends.torch.binding import Binding, Context
from datong.backends.torch.cache import pair_of
from datong.backends.torch.dtypes import DTYPES
from datong.backends.torch.frame import Frame
from datong.backends.torch.fused import bindings_for, refusals
from datong.backends.torch.options import Settings
from datong.backends.torch.target import Target
from datong.backends.torch.weights import WeightStore
from datong.spec.program import Node, Part

Closure = Callable[[Frame], None]
_VIEWS = ("slice", "concat", "scale_groups")  # operators whose result may be a view of what they were given
_OF_STEP = ("ids", "positions", "rows")  # inputs that every part shares


class Builder:
    """What a lowering needs of the part that is compiled."""

    def __init__(self, part: Part, target: Target, settings: Settings, weights: WeightStore) -> None:
        self.part, self.target, self.settings, self.weights = part, target, settings, weights
        self.dtype, self.cache_dtype = DTYPES[settings.dtype], DTYPES[settings.cache_dtype]
        self.layouts = pair_of(target)
        self.terms = target.terms(settings.dtype, settings.cache_dtype) if settings.fused else None
        # sequences that decode, in turn instead of at once: their keys are read in place
        in_place = self.layouts.keys.in_place and self.layouts.values.in_place
        self.one_by_one = target.places and in_place and not settings.buckets
        self.closures: list[Closure] = []
        self.capturable = True
        self.unused: list[str] = []  # vendor operators that refused the node that is being lowered, with the reason
        self._last = {name: i for i, node in enumerate(part.nodes) for name in node.inputs}
        self._place: dict[str, int] = {}
        self._shared: dict[tuple[Any, ...], int] = {}
        self._free: list[int] = []
        self.registers = 0

    def width(self, name: str) -> int:
        """Last dim of a value."""
        return int(self.part.values[name].shape[-1])

    def read(self, name: str) -> int:
        """The register of a value that is there already."""
        return self._place[name]

    def write(self, name: str) -> int:
        """A register for a new value."""
        self._place[name] = self._take()
        return self._place[name]

    def release(self, index: int, node: Node) -> None:
        """After node number `index`: registers whose value nobody reads any more are free."""
        for name in dict.fromkeys((*node.inputs, *node.outputs)):
            if name in self._place and self._last.get(name, -1) <= index and name not in self.part.outputs:
                self._free.append(self._place.pop(name))

    def shared(self, key: tuple[Any, ...], make: Callable[[Frame], Any]) -> int:
        """A register for something that several nodes need, computed once per step where the first asks for it."""
        if key not in self._shared:
            register = self._shared[key] = self._take()

            def run(frame: Frame) -> None:
                frame.registers[register] = make(frame)

            self.closures.append(run)
        return self._shared[key]

    def emit(self, closure: Closure) -> None:
        """Add one call to the step."""
        self.closures.append(closure)

    def vendor(self, op: str, node: Node) -> tuple[str, Binding, Callable[..., Any]] | None:
        """The vendor's operator for a node or a stage of it: its name, its binding, and the call; None: there is none.

        The first of the descriptor that takes this node.
        """
        if self.terms is None:
            return None
        terms = replace(self.terms, dying=self.dying(node))
        for name, binding, operator in bindings_for(terms, op, node, self.part.values):
            context = Context(**vars(terms), operator=operator, values=self.part.values, weight=self.weights.get)
            self.capturable = self.capturable and binding.capturable
            return name, binding, binding.make(node, context)
        self.unused += [f"{name}: {reason}" for name, reason in refusals(terms, op, node, self.part.values)]
        return None

    def dying(self, node: Node) -> frozenset[str]:
        """Inputs of a node that nobody reads after it, and whose memory no other value shares."""
        index = self.part.nodes.index(node)
        shared = {name for other in self.part.nodes if other.op in _VIEWS for name in (*other.inputs, *other.outputs)}
        alive = {*shared, *self.part.outputs, *_OF_STEP}
        return frozenset(name for name in node.inputs if self._last.get(name) == index and name not in alive)

    def _take(self) -> int:
        if self._free:
            return self._free.pop()
        self.registers += 1
        return self.registers - 1


def unary(source: int, target: int, function: Callable[[Tensor], Tensor]) -> Closure:
    """Target = function(source)."""

    def run(frame: Frame) -> None:
        registers = frame.registers
        registers[target] = function(registers[source])

    return run


def binary(a: int, b: int, target: int, function: Callable[[Tensor, Tensor], Tensor]) -> Closure:
    """Target = function(a, b)."""

    def run(frame: Frame) -> None:
        registers = frame.registers
        registers[target] = function(registers[a], registers[b])

    return run


def call(sources: tuple[int, ...], targets: tuple[int, ...], function: Callable[..., Any]) -> Closure:
    """Targets = function(*sources): for the vendor's operators."""
    if len(targets) == 1:
        (only,) = targets

        def one(frame: Frame) -> None:
            registers = frame.registers
            registers[only] = function(*[registers[i] for i in sources])

        return one

    def many(frame: Frame) -> None:
        registers = frame.registers
        for target, result in zip(targets, function(*[registers[i] for i in sources]), strict=True):
            registers[target] = result

    return many
