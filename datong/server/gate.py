"""Around every request: its id, its key, errors as JSON, one line in the log, one count in the metrics."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from datong.server import page
from datong.server.auth import Keys
from datong.server.context import Context, Parts, new_id
from datong.server.errors import ApiError, from_engine
from datong.server.limits import Meter
from datong.server.log import log, log_exception
from datong.server.sse import ClientGone

# Without a key: what load balancers ask, and the page, which must be there to ask people for theirs.
OPEN = frozenset({"/health", "/ready", *page.table()})
_ID = re.compile(rb"[\w.:-]{1,128}")  # what a client may choose: it comes back in a header and goes into the log
GONE = 499  # nginx's number for a client that went away; only in log and metrics


class Gate:
    """The outermost ASGI application."""

    def __init__(self, app: ASGIApp, parts: Callable[[], Parts], keys: Keys) -> None:
        self._app, self._parts, self._keys = app, parts, keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"")
        context = Context(self._parts(), given.decode() if _ID.fullmatch(given) else new_id("req"))
        scope["datong"] = context
        answer = _Answer(context.id, send)
        begin = time.monotonic()
        try:
            if scope["path"] not in OPEN:
                authorization = headers.get(b"authorization")
                context.key = self._keys.name_of(authorization.decode("latin-1") if authorization else None)
                meter = self._keys.meter(context.key) if scope["method"] == "POST" else None
                if meter is not None:
                    meter.enter()
                    answer.meter = meter
            await self._app(scope, receive, answer.send)
        except ClientGone:
            answer.status = GONE
        except Exception as error:
            await answer.fail(error, context)
        finally:
            if answer.meter is not None:
                answer.meter.leave(sum(int(context.line.get(f"{part}_tokens", 0)) for part in ("prompt", "completion")))
            context.release()
            self._note(scope, context, answer.status, time.monotonic() - begin)

    def _note(self, scope: Scope, context: Context, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "other")  # a template, so that strangers cannot make labels
        context.parts.metrics.http(route, status)
        if route in OPEN or route == "/metrics":
            return
        if (traces := context.parts.traces) is not None:
            parent = dict(scope["headers"]).get(b"traceparent", b"").decode("latin-1")
            traces.request(f"{scope['method']} {route}", context.id, status, seconds, context.line, parent)
        who = {} if context.key is None else {"key": context.key}
        log(
            "request",
            id=context.id,
            method=scope["method"],
            path=scope["path"],
            status=status,
            **who,
            **{"seconds": round(seconds, 4), **context.line},
        )


class _Answer:
    """Adds the request id to the headers; knows whether an error can still have a status."""

    def __init__(self, id_: str, send: Send) -> None:
        self._id, self._send = id_.encode(), send
        self.status, self._begun = GONE, False
        self.meter: Meter | None = None  # of the key, once the request counts

    async def send(self, message: Message) -> None:
        """Pass on."""
        if message["type"] == "http.response.start":
            self.status, self._begun = message["status"], True
            message["headers"] = [*message.get("headers", []), (b"x-request-id", self._id)]
            if self.meter is not None:
                message["headers"] += [(k.encode(), v.encode()) for k, v in self.meter.headers().items()]
        await self._send(message)

    async def fail(self, error: Exception, context: Context) -> None:
        """Answer with the error, where no route has. Our own failures are logged with their traceback."""
        found = error if isinstance(error, ApiError) else from_engine(error)
        context.line.setdefault("error", found.code)
        if found.status >= 500 and not isinstance(error, ApiError):
            log_exception("request", error)
        if self._begun:
            return
        data = found.encoded()
        headers = [(name.encode(), value.encode()) for name, value in found.headers.items()]
        headers += [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode())]
        await self.send({"type": "http.response.start", "status": found.status, "headers": headers})
        await self.send({"type": "http.response.body", "body": data})
