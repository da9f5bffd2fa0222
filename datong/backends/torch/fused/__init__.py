"""Vendor operators that our lowering can call.

Every module of this folder may have `BINDINGS`, rows of (dotted name as chip descriptors use it, Binding): one small
file per family of operators. An operator that does several of ours (prefill and decode) has a row for each. The
contract is `datong/backends/torch/binding.py`.
"""

from __future__ import annotations

import contextlib
import importlib
import pkgutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from typing import Any

from datong.backends.torch.binding import Binding, Terms
from datong.chips.load import Chip
from datong.chips.schema import FusedOperator
from datong.errors import BackendError
from datong.spec.program import Node, Value


@cache
def bindings() -> Mapping[tuple[str, str], Binding]:
    """Every binding, by the vendor operator's dotted name and what it does. Raises BackendError for one bound twice."""
    table: dict[tuple[str, str], Binding] = {}
    for module in pkgutil.iter_modules(__path__):
        rows: Iterable[tuple[str, Binding]] = getattr(
            importlib.import_module(f"{__name__}.{module.name}"), "BINDINGS", ()
        )
        for name, binding in rows:
            if (name, binding.implements) in table:
                raise BackendError("fused", f"`{name}` should be bound once, `{module.name}.py` binds it again")
            table[name, binding.implements] = binding
    return table


def candidates(chip: Chip, op: str) -> Iterator[tuple[FusedOperator, Binding]]:
    """What the chip's descriptor offers for an operator of ours, in its order, where code may act on it."""
    for fused in chip.stack.fused:
        usable = bool(fused.schema) and fused.grade in ("A", "B")
        if fused.implements == op and usable and chip.generation.name in (fused.generations or [chip.generation.name]):
            binding = bindings().get((fused.name, op))
            if binding is not None:
                yield fused, binding


def bindings_for(
    terms: Terms, op: str, node: Node, values: Mapping[str, Value]
) -> Iterator[tuple[str, Binding, Callable[..., Any]]]:
    """(name, binding, operator) of each vendor operator that takes this node, best first. The adapter is imported."""
    for fused, binding in candidates(terms.chip, op):
        operator = available(fused)
        if operator is not None and binding.refuse(node, values, terms) is None:
            yield fused.name, binding, operator


def refusals(terms: Terms, op: str, node: Node, values: Mapping[str, Value]) -> list[tuple[str, str]]:
    """(name, reason) of each vendor operator of this chip that is not used for the node."""
    found = []
    for fused, binding in candidates(terms.chip, op):
        missing = f"`{fused.name}` is not in the adapter" if available(fused) is None else None
        if reason := missing or binding.refuse(node, values, terms):
            found.append((fused.name, reason))
    return found


def available(fused: FusedOperator) -> Any | None:
    """The operator, after importing the module that brings it; None: it is not here."""
    if fused.module and fused.module not in sys.modules:
        # not installed, or a library of the toolkit does not load: then the name stands for nothing, or something else
        # has brought the operator
        with contextlib.suppress(ImportError, OSError):
            importlib.import_module(fused.module)
    return resolve(fused.name)


def resolve(dotted: str) -> Any | None:
    """What a dotted name (`torch.ops._C.rms_norm`) stands for in the modules that are imported; None: nothing."""
    first, *rest = dotted.split(".")
    found: Any = sys.modules.get(first)
    for name in rest:
        if found is None:
            return None
        try:
            found = getattr(found, name, None)
        except RuntimeError:  # torch.ops of an operator with a broken library
            return None
    return found
