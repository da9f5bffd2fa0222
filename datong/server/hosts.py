"""The models of a server, by the names that clients use. Loaded when first asked for, within a budget of memory.

When a model does not fit beside those that are loaded, the ones that nobody uses go, the longest unused first. Memory
is what the model says it may grow to: weights, work space and the whole cache.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from datong.engine.heap import give_back
from datong.server.errors import ApiError, no_model
from datong.server.log import log
from datong.server.service import Service
from datong.server.settings import MIB, Settings

if TYPE_CHECKING:
    from datong.engine.model import Model

RETRY_SECONDS = 5  # when every loaded model is in use


@dataclass(frozen=True, slots=True)
class Opened:
    """A model, and what a run on its device proves, such as `measured`."""

    model: Model
    evidence: str


Open = Callable[[], Opened]


@dataclass(eq=False, slots=True)
class Host:
    """One model, loaded."""

    name: str
    model: Model
    service: Service
    created: int  # seconds since 1970: when it was loaded
    evidence: str
    pins: int = 0  # HTTP requests that use it now
    used: float = 0.0  # monotonic seconds: when one came last

    @property
    def memory(self) -> int:
        """Bytes that it may grow to."""
        return sum(self.model.memory().values())


class Hosts:
    """A name that is in no table is 404; names are never paths.

    Args:
        opens: how each model is opened; slow, run in a thread.
        settings: of the server.
    """

    def __init__(self, opens: Mapping[str, Open], settings: Settings) -> None:
        self._opens, self._settings = dict(opens), settings
        self._loaded: dict[str, Host] = {}
        self._sizes: dict[str, int] = {}  # bytes, of those that were loaded once
        self._lock = asyncio.Lock()

    @property
    def names(self) -> list[str]:
        """All of them, in the order given on the command line."""
        return list(self._opens)

    def all(self) -> list[Host]:
        """Those that are loaded."""
        return list(self._loaded.values())

    def loaded(self, name: str) -> Host | None:
        """The host of a known name. Raises ApiError 404."""
        if name not in self._opens:
            raise no_model(name, self.names)
        return self._loaded.get(name)

    def add(self, name: str, opened: Opened) -> Host:
        """Take over a model that is open."""
        service = Service(opened.model, self._settings.max_requests)
        host = Host(name, opened.model, service, int(time.time()), opened.evidence)
        self._loaded[name], self._sizes[name] = host, host.memory
        return host

    async def pin(self, name: str | None) -> Host:
        """The model, loaded if need be; `unpin` lets it go. None is the only one. Raises ApiError 404, 503."""
        if name is None and len(self._opens) == 1:
            name = self.names[0]
        host = self.loaded(name or "")
        if host is None:
            async with self._lock:
                host = self.loaded(name or "") or await self._load(name or "")
        host.pins += 1
        host.used = time.monotonic()
        return host

    def unpin(self, host: Host) -> None:
        """Of `pin`."""
        host.pins -= 1

    async def _load(self, name: str) -> Host:
        budget = None if self._settings.memory_mb is None else self._settings.memory_mb * MIB
        if budget is not None:
            await self._make_room(budget - self._sizes.get(name, 0))
        begin = time.monotonic()
        opened = await asyncio.to_thread(self._opens[name])
        host = self.add(name, opened)
        host.pins = 1  # not to be dropped at once
        try:
            if budget is not None:
                await self._make_room(budget)
        except ApiError:
            del self._loaded[name]
            raise
        finally:
            host.pins = 0
        host.service.start()
        log("loaded", model=name, seconds=round(time.monotonic() - begin, 2), mb=host.memory // MIB)
        return host

    async def _make_room(self, budget: int) -> None:
        """Drop unused models until the loaded ones fit. Raises ApiError 503 when those in use do not."""
        while sum(host.memory for host in self.all()) > budget:
            idle = [host for host in self.all() if not host.pins and not host.service.live]
            if not idle:
                text = "The models in use fill the server's memory; try again later"
                headers = {"Retry-After": str(RETRY_SECONDS)}
                raise ApiError(503, text, code="memory_full", headers=headers)
            host = min(idle, key=lambda host: host.used)
            del self._loaded[host.name]
            log("unloaded", model=host.name, mb=host.memory // MIB)
            await host.service.stop()
            del host, idle
            give_back()
