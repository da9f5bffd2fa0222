"""Makes this process a machine with one simulated chip, as its adapter would show it to PyTorch. Once per process.

PrivateUse1 stacks get PyTorch's Python backend under the adapter's device name. Stacks whose own build of PyTorch says
`cuda` get the real CUDA dispatch key on a PyTorch without CUDA: the same fallback, and a device guard that does nothing
(PyTorch has one for its `meta` device; it only has to be listed for `cuda` as well).
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Collection
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from datong.backends.sim import namespace, rules, tensor, vendor
from datong.backends.sim.card import Card
from datong.backends.sim.rules import Rules
from datong.chips.load import Chip
from datong.errors import BackendError

# Operators that make a tensor without asking one that is on the device already. PyTorch's own forms of the later ones
# resize an empty tensor, which ours cannot.
FACTORIES = ("empty.memory_format", "empty_strided", "copy_", "arange", "arange.start", "arange.start_step", "linspace",
             "logspace", "range", "range.step", "randperm", "eye", "eye.m", "tril_indices", "triu_indices")  # fmt: skip
KEYS = {"privateuse1": "PrivateUse1", "cuda-build": "CUDA", "cuda": "CUDA"}
_CUDA, _META = 1, 14  # c10::DeviceType
_kept: list[Any] = []  # libraries: what they register goes with them


def install(chip: Chip, device: str, memory_bytes: int | None = None, without: Collection[str] = ()) -> Card:
    """Install a chip in this process.

    Args:
        chip: which.
        device: full name, for errors: `sim:ascend-910b`.
        memory_bytes: instead of the descriptor's; 0: without limit.
        without: operators to take away: `aten::mm`.

    Raises:
        BackendError: this PyTorch cannot simulate it, or there is a chip already.
        ChipError: the schema of a fused operator cannot be read.
    """
    if _kept:
        raise BackendError(device, "a process should have one simulated chip, it has one already")
    adapter = chip.stack.adapter
    if adapter.kind not in KEYS or not adapter.device.usable or not adapter.namespace.usable:
        raise BackendError(device, "a simulated chip should have a PyTorch adapter, its descriptor names none")
    known = chip.generation.memory_bytes
    if memory_bytes is None:
        memory_bytes = known.value if known.usable and known.value else 0
    own = Rules(device, chip, frozenset(without))
    rules.install(own)
    card = Card(own, torch.device("cpu"), memory_bytes)
    graph = (adapter.graph.value or "").rpartition(".")[2] if adapter.graph.usable else ""
    members = namespace.members(card, graph)
    name = str(adapter.device.value)
    if KEYS[adapter.kind] == "CUDA":
        _cuda(device, members)
    else:
        _privateuse1(name, members)
    card.device = torch.device(name, 0)
    tensor.insert(card)
    _register(card, KEYS[adapter.kind])
    module = _adapter(adapter.module.value or "", members)
    suffix = chip.stack.identity.torch_version_suffix
    if suffix.usable and suffix.value:
        torch.__version__ = torch.torch_version.TorchVersion(torch.__version__.partition("+")[0] + suffix.value)
    _kept.extend(vendor.define(card, module))
    return card


def _privateuse1(name: str, members: dict[str, Any]) -> None:
    """PyTorch's Python backend under the adapter's name; `torch.<name>` is its namespace."""
    made = ModuleType(f"torch.{name}", "Made by Datong for a simulated chip.")
    vars(made).update(members)
    _setup_privateuseone_for_python_backend(name, made)
    sys.modules[f"torch.{name}"] = made


def _cuda(device: str, members: dict[str, Any]) -> None:
    """`torch.cuda` of a PyTorch without CUDA, as the vendor's build shows it."""
    if not torch.version.cuda and not torch.version.hip:
        _no_guard(device)
    else:
        torch._C._ensureCUDADeviceGuardSet()
    for name, member in members.items():
        setattr(torch.cuda, name, member)


def _no_guard(device: str) -> None:
    """List the guard of `meta`, which does nothing, for `cuda`.

    PyTorch does the same for its fake tensors, but only in builds with CUDA (c10/core/impl/DeviceGuardImplInterface.cpp
    ensureCUDADeviceGuardSet). The table is exported by libc10: one pointer per device type.
    """
    library = next(Path(torch.__file__).parent.glob("lib/libc10.*"), None)
    try:
        table = (ctypes.c_void_p * (_META + 1)).in_dll(
            ctypes.CDLL(str(library)), "_ZN3c104impl26device_guard_impl_registryE"
        )
    except (OSError, ValueError) as error:
        text = f"PyTorch {torch.__version__} should have a table of device guards, it has none that we know"
        raise BackendError(device, text, "the project is tested with the version in pyproject.toml") from error
    if not table[0] or not table[_META]:
        raise BackendError(device, f"PyTorch {torch.__version__} should have guards for cpu and meta, one is missing")
    if not table[_CUDA]:
        table[_CUDA] = table[_META]


def _register(card: Card, key: str) -> None:
    """Send to the card what PyTorch asks of the device without a device tensor in hand."""
    aten = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
    for name in FACTORIES:
        base, _, overload = name.partition(".")
        operator = getattr(getattr(torch.ops.aten, base), overload or "default")
        aten.impl(name, lambda *a, _operator=operator, **k: card.execute(_operator, a, k), key, allow_override=True)  # type: ignore[no-untyped-call]
    everything = torch.library.Library("_", "IMPL")  # type: ignore[no-untyped-call]
    everything.fallback(lambda operator, *a, **k: card.execute(operator, a, k), key)  # type: ignore[no-untyped-call]
    _kept.extend((aten, everything))


def _adapter(name: str, members: dict[str, Any]) -> ModuleType | None:
    """The module that a program imports to have the device: `torch_npu`."""
    if not name:
        return None
    made = vendor.add_module(name)
    vars(made).update(members)
    return made
