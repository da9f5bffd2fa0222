"""`POST /v1/chat/completions`: whole, or as a stream of deltas."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from datong.engine.dialogue import DialogueReader, Piece
from datong.engine.results import STOP, Chunk
from datong.engine.tokenizer import Tokenizer
from datong.server.answers import (
    Chat,
    ChatChunk,
    ChatLogprobs,
    Choice,
    ChunkChoice,
    Delta,
    Function,
    Message,
    ToolCall,
    Usage,
)
from datong.server.body import read
from datong.server.context import Context, new_id
from datong.server.errors import unsupported
from datong.server.hosts import Host
from datong.server.logprobs import chat_logprobs
from datong.server.prompts import Prepared, chat_job
from datong.server.schemas import ChatRequest
from datong.server.sse import EventStream, event, guarded, while_connected
from datong.server.usage import usage

TOOL_CALLS = "tool_calls"
_NOT_HERE = ("audio", "prediction", "web_search_options", "functions", "function_call")


async def chat(request: HttpRequest) -> Response:
    """The route."""
    context = Context.of(request)
    body = await read(request, ChatRequest, context.settings)
    _check(body)
    host = await context.host(body.model)
    prepared = await asyncio.to_thread(chat_job, host, body, context.settings)
    context.submit(host, prepared.job)
    answer = ChatAnswer(host, prepared, body)
    if body.stream:
        events = guarded(answer.stream(), context.failed)
        return EventStream(events, lambda: context.close(host, prepared.job))
    try:
        whole = await while_connected(request, answer.whole())
    finally:
        context.close(host, prepared.job)
    return Response(msgspec.json.encode(whole), media_type="application/json")


def _check(body: ChatRequest) -> None:
    for name in _NOT_HERE:
        if getattr(body, name) is not None:
            raise unsupported(name, f"{name} is not supported")
    if body.modalities not in (None, ["text"]):
        raise unsupported("modalities", "modalities should be ['text']")


class ChoiceReader:
    """One choice: its text taken apart, its calls numbered."""

    def __init__(self, prepared: Prepared, parallel: bool) -> None:
        self._reader = DialogueReader(prepared.dialogue, prepared.tools, prepared.text)
        self._parallel = parallel
        self.calls: list[ToolCall] = []
        self.reasoning_tokens = 0

    def read(self, chunk: Chunk) -> list[Delta]:
        """What is new."""
        pieces = self._reader.push(chunk.text)
        if chunk.finish_reason is not None:
            pieces += self._reader.finish()
        if pieces and all(piece.kind == "reasoning" for piece in pieces):
            self.reasoning_tokens += len(chunk.tokens)
        return [delta for piece in pieces if (delta := self._delta(piece)) is not None]

    def finish_reason(self, reason: str | None) -> str | None:
        """`tool_calls` where the model called something and ended by itself."""
        return TOOL_CALLS if reason == STOP and self.calls else reason

    def _delta(self, piece: Piece) -> Delta | None:
        if piece.kind == "text":
            return Delta(content=piece.text)
        if piece.kind == "reasoning":
            return Delta(reasoning_content=piece.text)
        if piece.call is None or (self.calls and not self._parallel):
            return None
        function = Function(piece.call.arguments, piece.call.name)
        self.calls.append(ToolCall(function, new_id("call"), "function", len(self.calls)))
        return Delta(tool_calls=[self.calls[-1]])


class ChatAnswer:
    """Formats the chunks of one job."""

    def __init__(self, host: Host, prepared: Prepared, body: ChatRequest) -> None:
        self._host, self._job, self._body = host, prepared.job, body
        self._tokenizer: Tokenizer = host.model.tokenizer
        parallel = body.parallel_tool_calls is not False
        self._readers = [ChoiceReader(prepared, parallel) for _ in range(prepared.choices)]
        self._id, self._created = new_id("chatcmpl"), int(time.time())

    def _usage(self) -> Usage:
        return usage(self._job, 1, sum(reader.reasoning_tokens for reader in self._readers))

    async def whole(self) -> Chat:
        """Everything at once."""
        texts, thoughts = [""] * len(self._readers), [""] * len(self._readers)
        async for chunk in self._job.chunks():
            for delta in self._readers[chunk.index].read(chunk):
                texts[chunk.index] += delta.content or ""
                thoughts[chunk.index] += delta.reasoning_content or ""
        choices = []
        for i, (reader, request) in enumerate(zip(self._readers, self._job.requests, strict=True)):
            for call in reader.calls:
                call.index = msgspec.UNSET
            message = Message(texts[i] or (None if reader.calls else ""))
            message.reasoning_content = thoughts[i] or msgspec.UNSET
            message.tool_calls = reader.calls or msgspec.UNSET
            logprobs = chat_logprobs(self._tokenizer, request.result.logprobs)
            choices.append(Choice(i, message, reader.finish_reason(request.result.finish_reason), logprobs))
        return Chat(self._id, self._created, self._host.name, choices, self._usage())

    async def stream(self) -> AsyncIterator[bytes]:
        """Deltas: first the role, then what comes, then the reason of the end; usage last where it is asked for."""
        with_usage = self._body.stream_options is not None and self._body.stream_options.include_usage
        empty = None if with_usage else msgspec.UNSET

        def chunk_of(choices: list[ChunkChoice], found: Usage | None = None) -> bytes:
            return event(ChatChunk(self._id, self._created, self._host.name, choices, found or empty))

        begun: set[int] = set()
        async for chunk in self._job.chunks():
            i, reader = chunk.index, self._readers[chunk.index]
            if i not in begun:
                begun.add(i)
                yield chunk_of([ChunkChoice(i, Delta(content="", role="assistant"))])
            logprobs = chat_logprobs(self._tokenizer, chunk.logprobs)
            for choice in _choices(i, reader.read(chunk), reader.finish_reason(chunk.finish_reason), logprobs):
                yield chunk_of([choice])
        if with_usage:
            yield chunk_of([], self._usage())


def _choices(index: int, deltas: list[Delta], finish: str | None, logprobs: ChatLogprobs | None) -> list[ChunkChoice]:
    """Pieces of one step; log-probabilities go with the first, the reason of the end comes alone."""
    if logprobs is not None and not deltas:
        deltas = [Delta(content="")]
    found = [ChunkChoice(index, delta) for delta in deltas]
    if logprobs is not None:
        found[0].logprobs = logprobs
    if finish is not None:
        found.append(ChunkChoice(index, Delta(), finish))
    return found
