"""The routes, and what lives as long as the server."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from datong.errors import DatongError
from datong.server import page
from datong.server.answers import ModelCard, ModelList, Status
from datong.server.auth import Keys
from datong.server.chat import chat
from datong.server.completions import completions
from datong.server.context import Context, Parts
from datong.server.embeddings import embeddings
from datong.server.errors import ApiError, from_engine
from datong.server.gate import GONE, Gate
from datong.server.hosts import Hosts
from datong.server.log import log_exception
from datong.server.metrics import CONTENT_TYPE, Metrics
from datong.server.openapi import document
from datong.server.responses import responses
from datong.server.settings import Settings
from datong.server.sse import ClientGone
from datong.server.tokens import detokenize, tokenize

ROUTES = (
    Route("/v1/chat/completions", chat, methods=["POST"]),
    Route("/v1/completions", completions, methods=["POST"]),
    Route("/v1/responses", responses, methods=["POST"]),
    Route("/v1/embeddings", embeddings, methods=["POST"]),
    Route("/tokenize", tokenize, methods=["POST"]),
    Route("/detokenize", detokenize, methods=["POST"]),
)


def build(table: Hosts, settings: Settings, keys: Keys) -> tuple[ASGIApp, Parts]:
    """The application, and its parts for whoever stops it."""
    parts = Parts(settings, table, Metrics(table))

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        for host in table.all():
            host.service.start()
        try:
            yield
        finally:
            for host in table.all():
                await host.service.stop()

    routes = [
        *ROUTES,
        Route("/v1/models", models),
        Route("/v1/models/{name:path}", model),
        Route("/health", health),
        Route("/ready", ready),
        Route("/metrics", metrics),
        Route("/openapi.json", openapi),
        *(page.routes() if settings.page else ()),
    ]
    app = Starlette(routes=routes, lifespan=lifespan, exception_handlers=HANDLERS)
    return Gate(app, lambda: parts, keys), parts


async def _api(request: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    Context.of(request).line.setdefault("error", error.code)
    return Response(error.encoded(), error.status, error.headers, "application/json")


async def _http(request: HttpRequest, error: Exception) -> Response:
    """Starlette's own: no such route, or not with this method."""
    assert isinstance(error, HTTPException)
    path = request.url.path[:80]
    if error.status_code == 405:
        found = ApiError(405, f"{request.method} is not possible for `{path}`", code="method_not_allowed")
        found.headers = dict(error.headers or {})
    else:
        found = ApiError(error.status_code, f"There is no `{path}` here", code="not_found")
    return await _api(request, found)


async def _failed(request: HttpRequest, error: Exception) -> Response:
    """Of the engine: the client's mistake, or ours, which is logged."""
    found = from_engine(error)
    context = Context.of(request)
    context.line["error"] = found.code
    if found.status >= 500:
        log_exception("request", error)
    return await _api(request, found)


async def _crashed(request: HttpRequest, error: Exception) -> Response:
    """Our mistake; the gate logs it."""
    return await _api(request, from_engine(error))


async def _gone(_: HttpRequest, __: Exception) -> Response:
    return Response(status_code=GONE)


HANDLERS = {HTTPException: _http, ApiError: _api, DatongError: _failed, ClientGone: _gone, Exception: _crashed}


def _json(document: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(document), status, media_type="application/json")


def _card(hosts: Hosts, name: str) -> ModelCard:
    """Raises ApiError 404."""
    host = hosts.loaded(name)
    if host is None:
        return ModelCard(name, 0, "datong", loaded=False)
    manifest = host.model.package.manifest
    return ModelCard(
        name,
        host.created,
        "datong",
        context_length=host.model.context,
        family=manifest.model.family,
        license=manifest.model.licence,
        device=host.model.device,
        evidence=host.evidence,
        loaded=True,
    )


async def models(request: HttpRequest) -> Response:
    """`GET /v1/models`."""
    hosts = Context.of(request).parts.hosts
    return _json(ModelList([_card(hosts, name) for name in hosts.names]))


async def model(request: HttpRequest) -> Response:
    """`GET /v1/models/{name}`."""
    return _json(_card(Context.of(request).parts.hosts, request.path_params["name"]))


async def health(_: HttpRequest) -> Response:
    """`GET /health`: the process answers."""
    return _json(Status("ok"))


async def ready(request: HttpRequest) -> Response:
    """`GET /ready`: new requests are taken; 503 while the server is going down."""
    parts = Context.of(request).parts
    if parts.draining:
        return _json(Status("draining"), 503)
    return _json(Status("ready", parts.hosts.names))


async def openapi(request: HttpRequest) -> Response:
    """`GET /openapi.json`."""
    names = tuple(Context.of(request).parts.hosts.names)
    return Response(document(names), media_type="application/json")


async def metrics(request: HttpRequest) -> Response:
    """`GET /metrics`."""
    return Response(Context.of(request).parts.metrics.text(), media_type=CONTENT_TYPE)
