"""Server-sent events, and answering only as long as somebody listens.

https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from datong.server.errors import ApiError, from_engine

T = TypeVar("T")
DONE = b"data: [DONE]\n\n"


class ClientGone(Exception):
    """Nobody listens any more."""


def event(document: object) -> bytes:
    """One event."""
    return b"data: " + msgspec.json.encode(document) + b"\n\n"


async def guarded(
    events: AsyncIterator[bytes],
    fail: Callable[[BaseException], None],
    last: Callable[[ApiError], bytes] = lambda error: event(error.body()),
    end: bytes = DONE,
) -> AsyncIterator[bytes]:
    """The events and `end`; an error becomes the `last` event, as the status is already on its way."""
    try:
        async for one in events:
            yield one
        if end:
            yield end
    except Exception as error:
        fail(error)
        yield last(from_engine(error))


class EventStream(StreamingResponse):
    """Calls `close` when the stream ends, however it ends."""

    def __init__(self, events: AsyncIterator[bytes], close: Callable[[], None]) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # nginx must not hold events back
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._close()


async def while_connected(request: HttpRequest, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`. Raises ClientGone, and cancels it, when the client goes away first."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        task.cancel()
        gone.cancel()


async def _gone(request: HttpRequest) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
