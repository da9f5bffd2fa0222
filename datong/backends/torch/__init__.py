"""Backends on PyTorch: `torch:cpu`, `torch:cuda`, and every chip with a PyTorch adapter. Importing this is cheap."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from datong.backends.torch import target as targets
from datong.spec.backend import DeviceInfo

if TYPE_CHECKING:
    from datong.backends.torch.backend import TorchBackend
    from datong.spec.backend import Backend


def create(device: str) -> Backend:
    """The backend of a device name: `torch:cpu`, `torch:cuda:1`, `metax:0`.

    One process can hold one adapter of the PrivateUse1 kind, so a chip with such an adapter gets a process of its own.
    Raises BackendMissing when PyTorch, the adapter or the device is not there.
    """
    target = targets.target_for(device)
    targets.require_build(target)
    if target.chip is not None and target.chip.stack.adapter.kind == "privateuse1":
        from datong.backends.worker import RemoteBackend

        return RemoteBackend(device, factory="datong.backends.torch:here", arguments=(device,))
    return here(device)


def here(device: str, without: Iterable[str] = ()) -> TorchBackend:
    """The same in this process, perhaps without some operators. Imports torch."""
    target = targets.target_for(device)
    targets.require_build(target)
    from datong.backends.torch.backend import TorchBackend

    return TorchBackend(target, without=without)


def present() -> list[DeviceInfo]:
    """`torch:cpu` where PyTorch is installed. Imports nothing heavy, so of other devices it knows nothing."""
    if not targets.installed("torch"):
        return []
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return [DeviceInfo("torch:cpu", f"PyTorch {targets.torch_version()} on the processor", memory, "measured")]
