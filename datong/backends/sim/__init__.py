"""Simulated chips: `sim:ascend-910b`, `sim:biren-br2xx`, `sim:metax-c500` … for tests, and for people without hardware.

A worker process gets a PyTorch device that is named as the vendor's and obeys the chip's descriptor: element types,
operators, memory, cache blocks, no hidden waiting for the device. The lowering of `backends/torch` runs on it as it
would on the card. It shows what breaks, not how fast it is: docs/adr/0015-simulated-chips.md. Evidence: `simulated`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Collection

from datong import env
from datong.backends.worker import RemoteBackend
from datong.chips.load import Chip, chips, find
from datong.errors import BackendMissing
from datong.spec.backend import DeviceInfo

PREFIX = "sim:"


def create(device: str, *, memory_bytes: int | None = None, without: Collection[str] = ()) -> RemoteBackend:
    """The backend of a simulated chip, in a process of its own that starts when it is first needed.

    Args:
        device: `sim:<chip>`, with a chip as chips.load.find reads it.
        memory_bytes: instead of the descriptor's; None: DATONG_SIM_MEMORY, else the descriptor's.
        without: operators of PyTorch that this chip is to lack (`aten::mm`), besides DATONG_SIM_WITHOUT.

    Raises:
        BackendMissing: no such chip, it cannot be simulated, or PyTorch is not installed.
    """
    chip = _chip(device)
    if not _has_torch():
        text = "a simulated chip should have PyTorch to run on, there is no module `torch`"
        raise BackendMissing(device, text, 'pip install "datong[torch]" brings it')
    if memory_bytes is None:
        memory_bytes = env.sim_memory()
    missing = env.sim_without() | frozenset(without)
    return RemoteBackend(
        device,
        factory="datong.backends.sim.backend:make",
        arguments=(device, chip.name, memory_bytes, missing),
        devices=[_info(device, chip, memory_bytes)],
        # An adapter that is installed on this machine must not load itself beside the simulated one.
        # Threads of a worker that waits for its turn leave the processor to the others.
        environment={"TORCH_DEVICE_BACKEND_AUTOLOAD": "0", "CUDA_VISIBLE_DEVICES": "", "OMP_WAIT_POLICY": "PASSIVE"},
    )


def present() -> list[DeviceInfo]:
    """Every chip that can be simulated here, under its first product's name; none without PyTorch."""
    if not _has_torch():
        return []
    names = [(f"{PREFIX}{chip.stack.name}-{chip.generation.products[0]}", chip) for chip in chips() if _possible(chip)]
    return [_info(name, chip, None) for name, chip in names]


def _chip(device: str) -> Chip:
    name = device.removeprefix(PREFIX)
    if name == device or not name:
        raise BackendMissing("sim", f"`{device}` should be `sim:` and a chip, as in `sim:ascend-910b`")
    chip = find(name)
    if not _possible(chip):
        raise BackendMissing(
            device, f"{chip.stack.title} should have a known PyTorch adapter to be simulated, it has none"
        )
    return chip


def _possible(chip: Chip) -> bool:
    """Does the descriptor say what the adapter looks like?"""
    adapter = chip.stack.adapter
    known = adapter.device.usable and adapter.namespace.usable
    return known and adapter.kind in ("privateuse1", "cuda-build", "cuda") and bool(chip.generation.products)


def _info(name: str, chip: Chip, memory_bytes: int | None) -> DeviceInfo:
    known = chip.generation.memory_bytes
    size = memory_bytes or (known.value if known.usable and known.value else 0)
    text = f"{chip.stack.vendor} {chip.generation.title}, simulated on the processor"
    return DeviceInfo(name, text, size, "simulated", {"chip": chip.name})


def _has_torch() -> bool:
    return importlib.util.find_spec("torch") is not None
