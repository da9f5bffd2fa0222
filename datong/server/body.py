"""Reading a request body: bounded in size and time, then decoded against its schema."""

from __future__ import annotations

import asyncio
from typing import TypeVar

import msgspec
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest

from datong.server.errors import ApiError, from_validation
from datong.server.schemas import DECODERS
from datong.server.settings import Settings
from datong.server.sse import ClientGone

T = TypeVar("T")
DISCARD = 256 << 20  # bytes of a refused body that are read and dropped
DISCARD_SECONDS = 10.0


async def read(request: HttpRequest, kind: type[T], settings: Settings) -> T:
    """The body as `kind`. Raises ApiError 400, 408, 413; ClientGone."""
    try:
        data = await _bytes(request, settings.max_body, settings.body_seconds)
    except ClientDisconnect:
        raise ClientGone from None
    try:
        found: T = DECODERS[kind].decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise from_validation(error) from None
    return found


async def _bytes(request: HttpRequest, most: int, seconds: float) -> bytes:
    """What came. One that is too long is read on and dropped for a while: closing at once would hide our answer."""
    data = bytearray()
    size = 0
    try:
        async with asyncio.timeout(seconds) as limit:
            async for piece in request.stream():
                if size <= most < size + len(piece):
                    limit.reschedule(asyncio.get_running_loop().time() + DISCARD_SECONDS)
                size += len(piece)
                if size <= most:
                    data += piece
                elif size > DISCARD:
                    break
    except TimeoutError:
        if size <= most:
            text = f"The body should arrive within {seconds:g} s"
            raise ApiError(408, text, code="body_timeout", headers={"Connection": "close"}) from None
    if size > most:
        text = f"The body may have {most} bytes, this one has more"
        raise ApiError(413, text, code="body_too_large", headers={"Connection": "close"})
    return bytes(data)
