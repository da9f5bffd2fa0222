"""What a worker of a simulated chip runs: the chip is installed, then the lowering of backends/torch finds a device."""

from __future__ import annotations

from dataclasses import replace

from datong.backends.sim.install import install
from datong.backends.sim.rules import REMOVED
from datong.backends.torch.backend import TorchBackend
from datong.backends.torch.target import chip_target
from datong.chips.load import find


def make(device: str, chip_name: str, memory_bytes: int | None, without: frozenset[str]) -> TorchBackend:
    """Install the chip in this process and make its backend.

    Args:
        device: full name: `sim:ascend-910b`.
        chip_name: as chips.load.find reads it.
        memory_bytes: instead of the descriptor's.
        without: operators of PyTorch that the chip is to lack.
    """
    chip = find(chip_name)
    card = install(chip, device, memory_bytes, without)
    target = chip_target(device, chip, evidence="simulated")
    lacking = {**target.missing, **dict.fromkeys(without, REMOVED)}
    return TorchBackend(replace(target, missing=lacking), guard=card.step)
