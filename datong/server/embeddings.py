"""`POST /v1/embeddings`: texts as vectors of length 1, from the model's last hidden values (engine/embedding.py).

https://platform.openai.com/docs/api-reference/embeddings/create
"""

from __future__ import annotations

import asyncio
import base64

import msgspec
import numpy as np
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from datong.engine.embedding import Embedding, check_pooling
from datong.errors import DatongError
from datong.server.answers import Embedded, EmbeddedUsage, Embeddings
from datong.server.body import read
from datong.server.context import Context
from datong.server.errors import from_engine, invalid
from datong.server.hosts import Host
from datong.server.job import Job
from datong.server.prompts import prompts_of
from datong.server.schemas import EmbeddingRequest
from datong.server.settings import Settings
from datong.server.sse import while_connected


async def embeddings(request: HttpRequest) -> Response:
    """The route."""
    context = Context.of(request)
    body = await read(request, EmbeddingRequest, context.settings)
    host = await context.host(body.model)
    work = await asyncio.to_thread(texts, host, body, context.settings)
    seconds = min(body.timeout_s or context.settings.timeout_s, context.settings.timeout_s)
    job = Job([], work, seconds=seconds, priority=body.priority)
    context.submit(host, job)
    try:
        await while_connected(request, job.wait())
    finally:
        context.close(host, job)
    found = [Embedded(_encoded(one.shortened(body.dimensions), body.encoding_format), i) for i, one in enumerate(work)]
    tokens = sum(len(one.sequence.tokens) for one in work)
    answer = Embeddings(found, host.name, EmbeddedUsage(tokens, tokens))
    return Response(msgspec.json.encode(answer), media_type="application/json")


def texts(host: Host, body: EmbeddingRequest, settings: Settings) -> list[Embedding]:
    """One per text of the body. Raises ApiError 400."""
    model = host.model
    if not model.has_hidden:
        raise invalid("model", "this server was started without --embeddings, which this route needs")
    pooling = check_pooling(body.pooling or model.package.pooling() or "mean")
    given = prompts_of(body.input, "input")
    if len(given) > settings.max_requests:
        raise invalid("input", f"input should hold at most {settings.max_requests} texts, got {len(given)}")
    try:
        lists = [model.encode(one) for one in given]
        for tokens in lists:
            model.engine.check(tokens, 0)
    except DatongError as error:
        raise from_engine(error, "input") from None
    if body.dimensions is not None and body.dimensions > model.hidden_size:
        raise invalid("dimensions", f"dimensions should be at most {model.hidden_size}, got {body.dimensions}")
    return [Embedding(tokens, pooling) for tokens in lists]


def _encoded(vector: np.ndarray, how: str | None) -> list[float] | str:
    """[n] f32 as numbers, or as the base64 of its little-endian bytes."""
    if how == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    numbers: list[float] = vector.tolist()
    return numbers
