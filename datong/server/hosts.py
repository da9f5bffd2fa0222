"""The models of a server, by the names that clients use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from datong.server.errors import no_model
from datong.server.service import Service

if TYPE_CHECKING:
    from datong.engine.model import Model


@dataclass(eq=False, slots=True)
class Host:
    """One model, loaded."""

    name: str
    model: Model
    service: Service
    created: int  # seconds since 1970: when it was loaded
    evidence: str  # what a run on its device proves: `measured`, `simulated` …


class Hosts:
    """A name that is in no table is 404; names are never paths."""

    def __init__(self, hosts: list[Host]) -> None:
        self._hosts = {host.name: host for host in hosts}

    def all(self) -> list[Host]:
        """In the order given on the command line."""
        return list(self._hosts.values())

    async def get(self, name: str | None) -> Host:
        """By name; None is the only model. Raises ApiError 404."""
        if name is None and len(self._hosts) == 1:
            return next(iter(self._hosts.values()))
        host = self._hosts.get(name or "")
        if host is None:
            raise no_model(name or "", list(self._hosts))
        return host
