"""uvicorn's HTTP/1.1 with bounds: a connection that says nothing must not stay, nor one that takes no answer."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol


def bounded(seconds: float, send_seconds: float) -> type[H11Protocol]:
    """A protocol class.

    Args:
        seconds: from the connection, or from a later request's first byte, to its headers' end.
        send_seconds: from when the transport's buffer is full to when the client has taken most of it.
    """

    class Bounded(H11Protocol):
        _patience: asyncio.TimerHandle | None = None
        _stuck: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self._answering():
                self._forget()
            elif self.conn.trailing_data[0]:  # the beginning of a request
                self._watch()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if not self._answering() and self.conn.trailing_data[0]:  # it came while we answered
                self._watch()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._stuck = self.loop.call_later(send_seconds, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            self._move_on()

        def connection_lost(self, exc: Exception | None) -> None:
            self._forget()
            self._move_on()
            super().connection_lost(exc)

        def _answering(self) -> bool:
            return self.cycle is not None and not self.cycle.response_complete

        def _watch(self) -> None:
            if self._patience is None:
                self._patience = self.loop.call_later(seconds, self._give_up)

        def _forget(self) -> None:
            if self._patience is not None:
                self._patience.cancel()
                self._patience = None

        def _move_on(self) -> None:
            if self._stuck is not None:
                self._stuck.cancel()
                self._stuck = None

        def _give_up(self) -> None:
            self._patience = None
            if not self._answering():
                self.transport.close()

    return Bounded
