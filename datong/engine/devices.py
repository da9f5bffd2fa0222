"""Which backends a model is spread over: `cpu`, `cpu,reference`, or a row with splits; and which options each is given.

A        everything on A; what it refuses on the reference, unless strict
A,B      A first, then B for what A refuses, then the reference, unless strict
A,B 15   layers 0 to 14 on A, from 15 on B; what one refuses on the other, then on the reference, unless strict
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from datong.backends.registry import backend_for
from datong.errors import InvalidRequest
from datong.spec.backend import Backend, option_names

FALLBACK = "reference"

Split = int | str | Sequence[int] | None


@dataclass(frozen=True)
class Devices:
    """Opened. `backends` are best first; the first `named` of them are those that the user named."""

    backends: tuple[Backend, ...]
    named: int
    splits: tuple[int, ...]  # first layers of the second device, the third, and so on; empty: no row


def open_devices(device: str, split: Split = None, *, strict: bool = False) -> Devices:
    """Open the devices that `device` names, separated by commas.

    Args:
        device: names that `datong.devices()` shows.
        split: first layers of the second device, the third, …: 15, (10, 20) or "10,20"; None: the devices stand in no
            row, each runs what those before it refuse.
        strict: add no reference backend.

    Raises:
        InvalidRequest: a name is empty or comes twice, or the splits do not fit the devices.
        BackendMissing, BackendError: from the registry.
    """
    names = [name.strip() for name in device.split(",")]
    splits = _splits(split, len(names))
    if not all(names):
        raise InvalidRequest("device", f"names separated by commas were expected, got `{device}`")
    backends: dict[str, Backend] = {}
    for name in names:
        backend = backend_for(name)
        if backend.name in backends:
            raise InvalidRequest(
                "device",
                f"every device should be another backend, `{backend.name}` comes twice in `{device}`",
                "drop one; a backend runs the whole of its layers on one device",
            )
        backends[backend.name] = backend
    if not strict and FALLBACK not in backends:
        backends[FALLBACK] = backend_for(FALLBACK)
    return Devices(tuple(backends.values()), len(names), splits)


def check_options(asked: Mapping[str, object], backends: Sequence[Backend]) -> None:
    """Raises InvalidRequest for an option that none of the named backends knows; see spec.backend.option_names."""
    known = [option_names(backend) for backend in backends]
    if any(names is None for names in known):
        return
    every = sorted(frozenset().union(*(names for names in known if names is not None)))
    unknown = next((name for name in asked if name not in every), None)
    if unknown is not None:
        where = ", ".join(f"`{backend.name}`" for backend in backends)
        raise InvalidRequest("load", f"option `{unknown}` is not known to {where}", f"options: {', '.join(every)}")


def _splits(split: Split, devices: int) -> tuple[int, ...]:
    """Checked as far as the model need not be known."""
    if split is None:
        return ()
    words = split.split(",") if isinstance(split, str) else [split] if isinstance(split, int) else list(split)
    try:
        splits = tuple(int(word) for word in words)
    except (TypeError, ValueError):
        raise InvalidRequest("split", f"layer numbers separated by commas were expected, got `{split}`") from None
    if len(splits) != devices - 1:
        raise InvalidRequest(
            "split",
            f"one split is expected between each two devices, got {len(splits)} for {devices} device(s)",
            "such as: --device cpu,reference --split 15",
        )
    if any(a >= b for a, b in pairwise(splits)):
        raise InvalidRequest("split", f"splits should rise, got {', '.join(map(str, splits))}")
    return splits
