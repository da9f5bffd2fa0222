"""The vendor's fused operators: defined with exactly the descriptor's schema, computed by operators/<stack>.py."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch

from datong.backends.sim.card import Card
from datong.chips.load import Chip
from datong.chips.schema import FusedOperator
from datong.errors import ChipError

PLACE = "datong.backends.sim.operators"


def functions(chip: Chip) -> dict[str, Callable[..., Any]]:
    """What operators/<stack>.py computes, by the descriptor's names; nothing where there is no such file."""
    module = f"{PLACE}.{chip.stack.name.replace('-', '_')}"
    if importlib.util.find_spec(module) is None:
        return {}
    found: dict[str, Callable[..., Any]] = importlib.import_module(module).OPERATORS
    return found


def offered(chip: Chip) -> Iterator[FusedOperator]:
    """The descriptor's operators that this generation has and whose schema is known for certain."""
    for fused in chip.stack.fused:
        known = bool(fused.schema) and fused.grade in ("A", "B")
        if known and (not fused.generations or chip.generation.name in fused.generations):
            yield fused


def define(card: Card, adapter: ModuleType | None) -> list[Any]:
    """Define every offered operator that has a function. Returns the libraries, which must live as long as the card."""
    computed = functions(card.rules.chip)
    libraries = []
    for fused in offered(card.rules.chip):
        if fused.name not in computed:
            continue
        space, name = _place(fused.name, adapter, card.device.type)
        if not hasattr(getattr(torch.ops, space), name):
            library = torch.library.Library(space, "FRAGMENT")  # type: ignore[no-untyped-call]
            library.define(_schema(card, fused, name))  # type: ignore[no-untyped-call]
            libraries.append(library)
        card.vendor[f"{space}::{name}"] = computed[fused.name]
        _show(fused.name, getattr(getattr(torch.ops, space), name))
    return libraries


def _place(dotted: str, adapter: ModuleType | None, device: str) -> tuple[str, str]:
    """PyTorch's namespace and name for a dotted name: `torch.ops._C.rms_norm` -> `_C`, `rms_norm`."""
    *path, name = dotted.split(".")
    if path[:2] == ["torch", "ops"]:
        return path[2], name
    if adapter is not None and path == [adapter.__name__]:
        return device, name
    return "_".join(path), name


def _schema(card: Card, fused: FusedOperator, name: str) -> str:
    """The schema under our name for the operator."""
    start = fused.schema.find("(")
    text = name + fused.schema[start:]
    try:
        torch._C.parse_schema(text)
    except RuntimeError as error:
        raise ChipError(
            f"{card.rules.chip.stack.name}.toml",
            f"the schema of `{fused.name}` should be one that PyTorch reads, got: {str(error).splitlines()[0]}",
        ) from error
    return text


def _show(dotted: str, operator: Any) -> None:
    """Put the operator under its dotted name, in modules that are made where the vendor's are not here."""
    *path, name = dotted.split(".")
    if path[:2] == ["torch", "ops"]:
        return
    above: Any = None
    for depth in range(1, len(path) + 1):
        full = ".".join(path[:depth])
        if full not in sys.modules and not hasattr(above, path[depth - 1]):
            add_module(full)
            if above is not None:
                setattr(above, path[depth - 1], sys.modules[full])
        above = sys.modules.get(full) or getattr(above, path[depth - 1])
    setattr(above, name, operator)


def add_module(name: str) -> ModuleType:
    """An empty module that `import` finds."""
    made = ModuleType(name, "Made by Datong for a simulated chip.")
    made.__spec__ = ModuleSpec(name, None, is_package=True)
    made.__path__ = []
    made.__version__ = "0+simulated"  # type: ignore[attr-defined]
    sys.modules[name] = made
    return made
