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
DISCARD = 256 << 20  # bytes of a refused body that are read and dropped, so that the client sees the answer


async def read(request: HttpRequest, kind: type[T], settings: Settings) -> T:
    """The body as `kind`. Raises ApiError 400, 408, 413; ClientGone."""
    try:
        async with asyncio.timeout(settings.body_seconds):
            data = await _bytes(request, settings.max_body)
    except TimeoutError:
        text = f"The body should arrive within {settings.body_seconds:g} s"
        raise ApiError(408, text, code="body_timeout", headers={"Connection": "close"}) from None
    except ClientDisconnect:
        raise ClientGone from None
    try:
        found: T = DECODERS[kind].decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise from_validation(error) from None
    return found


async def _bytes(request: HttpRequest, most: int) -> bytes:
    data = bytearray()
    size = 0
    async for piece in request.stream():
        size += len(piece)
        if size <= most:
            data += piece
        elif size > DISCARD:
            break
    if size > most:
        text = f"The body may have {most} bytes, this one has {'more' if size > DISCARD else size}"
        raise ApiError(413, text, code="body_too_large", headers={"Connection": "close"})
    return bytes(data)
