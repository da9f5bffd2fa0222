"""A server from start to end: bind, serve, and on SIGTERM finish what runs while new work gets 503."""

from __future__ import annotations

import signal
import socket
import sys
import time
from collections.abc import Callable
from types import FrameType

import uvicorn

from datong.errors import DatongError
from datong.server.app import build
from datong.server.auth import Keys
from datong.server.context import Parts
from datong.server.hosts import Hosts
from datong.server.log import log, set_up
from datong.server.protocol import bounded
from datong.server.settings import Settings
from datong.server.traces import Traces

BACKLOG = 2048  # connections that the kernel keeps for us
IDLE_SECONDS = 30  # an unused connection is kept this long for the next request


class DrainingServer(uvicorn.Server):
    """The first SIGTERM or SIGINT drains; the second one ends at once."""

    def __init__(self, config: uvicorn.Config, parts: Parts) -> None:
        super().__init__(config)
        self._parts, self._since = parts, 0.0  # seconds: when draining began

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Of uvicorn; runs in the main thread between two bytecodes."""
        if self._parts.draining:
            self.should_exit = self.force_exit = True
            return
        self._parts.draining, self._since = True, time.monotonic()
        log("draining", signal=signal.Signals(sig).name, running=self._live())

    def _live(self) -> int:
        return sum(host.service.live for host in self._parts.hosts.all())

    async def on_tick(self, counter: int) -> bool:
        """Of uvicorn, ten times a second: when the last answer is out, or patience is over, leave."""
        if self._parts.draining and not self.should_exit:
            late = time.monotonic() - self._since > self._parts.settings.drain_s
            if late or not self._live():
                log("stopping", dropped=self._live())
                self.should_exit = True
        return await super().on_tick(counter)


def _bound(host: str, port: int) -> socket.socket:
    """A listening socket. Raises DatongError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except (OSError, OverflowError) as error:
        hint = "is another server running there? --port 0 takes any free one"
        raise DatongError("serve", f"`{host}:{port}` cannot be bound: {error}", hint) from None


def serve(hosts: Hosts, settings: Settings, started: Callable[[str], None] = lambda url: None) -> None:
    """Serve until a signal comes. Raises DatongError when the address cannot be used."""
    keys = Keys.load(settings.api_keys)
    set_up()
    app, parts = build(hosts, settings, keys)
    parts.traces = Traces.from_environment()
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=bounded(settings.header_seconds, settings.send_seconds),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=True,
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=5,
        ssl_certfile=settings.tls_certificate,
        ssl_keyfile=settings.tls_key,
    )
    sockets = [_bound(settings.host, settings.port)]
    host, port = sockets[0].getsockname()[:2]
    scheme = "https" if settings.tls_certificate else "http"
    started(f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}")
    server = DrainingServer(config, parts)
    log("started", host=host, port=port, models=hosts.names, keys=bool(keys))
    try:
        server.run(sockets)
    finally:
        if parts.traces is not None:
            parts.traces.close()
    if not server.started:
        sys.exit(1)
