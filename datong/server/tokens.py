"""`POST /tokenize` and `/detokenize`: what the model sees. Not part of OpenAI's API; the shapes are vLLM's."""

from __future__ import annotations

import asyncio

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from datong.server.answers import Detokenized, Tokens
from datong.server.body import read
from datong.server.context import Context
from datong.server.errors import invalid
from datong.server.hosts import Host
from datong.server.logprobs import token_text
from datong.server.messages import for_template, tools_asked
from datong.server.schemas import DetokenizeRequest, TokenizeRequest


async def tokenize(request: HttpRequest) -> Response:
    """The route."""
    context = Context.of(request)
    body = await read(request, TokenizeRequest, context.settings)
    if (body.prompt is None) == (body.messages is None):
        raise invalid("prompt", "either `prompt` or `messages` was expected")
    host = await context.host(body.model)
    found = await asyncio.to_thread(_tokens, host, body)
    return Response(msgspec.json.encode(found), media_type="application/json")


def _tokens(host: Host, body: TokenizeRequest) -> Tokens:
    model = host.model
    if body.messages is not None:
        tools = tools_asked(body.tools, None)
        text = model.chat_template(bool(tools)).render(
            for_template(body.messages), tools=tools or None, add_generation_prompt=body.add_generation_prompt
        )
        ids = model.tokenizer.encode(text, add_special=False)
    else:
        ids = model.tokenizer.encode(body.prompt or "", add_special=body.add_special_tokens)
    found = Tokens(ids, len(ids), model.context)
    if body.return_token_strs:
        found.token_strs = [token_text(model.tokenizer, token) for token in ids]
    return found


async def detokenize(request: HttpRequest) -> Response:
    """The route."""
    context = Context.of(request)
    body = await read(request, DetokenizeRequest, context.settings)
    host = await context.host(body.model)
    if body.tokens and max(body.tokens) >= host.model.vocab_size:
        raise invalid("tokens", f"token ids should be below {host.model.vocab_size}, got {max(body.tokens)}")
    text = await asyncio.to_thread(host.model.tokenizer.decode, body.tokens, body.skip_special_tokens)
    return Response(msgspec.json.encode(Detokenized(text)), media_type="application/json")
