"""Opening models for a server."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from datong.server.hosts import Host
from datong.server.service import Service
from datong.server.settings import Settings

if TYPE_CHECKING:
    from datong.engine.model import Model


def host_of(name: str | None, model: Model, evidence: str, settings: Settings) -> Host:
    """A model under a name; None: the package's own."""
    service = Service(model, settings.max_requests)
    return Host(name or model.package.manifest.model.name, model, service, int(time.time()), evidence)
