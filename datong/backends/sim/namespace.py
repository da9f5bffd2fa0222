"""What a vendor's adapter puts beside PyTorch: the namespace (`torch.npu`), streams, events, memory figures, graphs.

The simulation has one device and one stream on which everything has happened as soon as it is asked for, so streams
and events order nothing; waiting for them within a step breaks the rule that it would break on the card.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

from datong.backends.sim.card import Card
from datong.backends.sim.graph import Graph, capture


class Stream:
    """The one stream."""

    card: Card

    def __init__(self, device: Any = None, priority: int = 0, **_: Any) -> None:
        self.device = self.card.device

    def synchronize(self) -> None:
        """The host waits for it."""
        self.card.wait("Stream.synchronize", "the host waits for a stream")

    def query(self) -> bool:
        """Is all done? It is."""
        return True

    def wait_stream(self, stream: Stream) -> None:
        """Work after this waits for the other stream, which has nothing left to do."""

    def wait_event(self, event: Event) -> None:
        """Work after this waits for the event, which has happened."""

    def record_event(self, event: Event | None = None) -> Event:
        """An event here."""
        made = event if event is not None else type(self).event()
        made.record(self)
        return made

    event: Callable[[], Event]


class Event:
    """A moment on the stream; it has passed as soon as it is recorded."""

    card: Card

    def __init__(self, enable_timing: bool = False, blocking: bool = False, **_: Any) -> None:
        self._at = 0.0

    def record(self, stream: Stream | None = None) -> None:
        """Now."""
        self._at = time.perf_counter()

    def synchronize(self) -> None:
        """The host waits for it."""
        self.card.wait("Event.synchronize", "the host waits for an event")

    def wait(self, stream: Stream | None = None) -> None:
        """A stream waits for it; it has passed."""

    def query(self) -> bool:
        """Has it passed? It has."""
        return True

    def elapsed_time(self, end: Event) -> float:
        """Milliseconds of the host: what the simulation took, which says nothing about the card."""
        return 1000 * (end._at - self._at)


def members(card: Card, graph_class: str) -> dict[str, Any]:
    """The attributes of the namespace.

    Args:
        card: whose namespace it is.
        graph_class: what the adapter calls its graph: `NPUGraph`; empty where it is not known to have one.
    """
    stream = type("Stream", (Stream,), {"card": card})
    event = type("Event", (Event,), {"card": card})
    stream.event = event  # type: ignore[attr-defined]
    the_stream = stream()

    @contextlib.contextmanager
    def on(_: Any = None) -> Iterator[None]:
        yield

    found = {
        "Stream": stream,
        "Event": event,
        "stream": on,
        "device": on,
        "current_stream": lambda device=None: the_stream,
        "default_stream": lambda device=None: the_stream,
        **_device(card),
        **_memory(card),
    }
    if graph_class:
        found[graph_class] = type(graph_class, (Graph,), {"card": card})
        found["graph"] = capture
        found["graph_pool_handle"] = lambda: (0, 0)
        found["is_current_stream_capturing"] = lambda: card.recorder is not None
    return found


def _device(card: Card) -> dict[str, Any]:
    generation = card.rules.chip.generation
    title = f"{generation.title} (simulated)"
    return {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "init": lambda: None,
        "_lazy_init": lambda: None,
        "_is_in_bad_fork": lambda: False,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "synchronize": lambda device=None: card.wait("synchronize", "the host waits for the device"),
        "get_device_name": lambda device=None: title,
        "get_device_properties": lambda device=None: SimpleNamespace(name=title, total_memory=card.meter.total),
        "is_bf16_supported": lambda *_: card.rules.dtype("is_bf16_supported", "bf16", "the question") is None,
        "manual_seed": lambda seed: None,
        "manual_seed_all": lambda seed: None,
        "get_amp_supported_dtype": list,
    }


def _memory(card: Card) -> dict[str, Any]:
    meter = card.meter

    def info(device: Any = None) -> tuple[int, int]:
        """Free and total bytes; of the host where the descriptor does not know the card's."""
        total = meter.total or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return total - meter.used, total

    def reset(device: Any = None) -> None:
        meter.peak = meter.used

    return {
        "mem_get_info": info,
        "memory_allocated": lambda device=None: meter.used,
        "memory_reserved": lambda device=None: meter.used,
        "max_memory_allocated": lambda device=None: meter.peak,
        "reset_peak_memory_stats": reset,
        "empty_cache": lambda: None,
    }
