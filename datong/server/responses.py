"""`POST /v1/responses`: the newer form of a conversation, answered by the same machinery as chat.

https://platform.openai.com/docs/api-reference/responses. Nothing is stored: `previous_response_id` is refused, and the
client sends the earlier items itself, as the API allows with `store: false`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from datong.engine.results import LENGTH
from datong.errors import DatongError
from datong.server.answers import Delta, ToolCall
from datong.server.body import read
from datong.server.chat import ChoiceReader
from datong.server.context import Context, new_id
from datong.server.errors import ApiError, from_engine
from datong.server.hosts import Host
from datong.server.logprobs import chat_logprobs
from datong.server.prompts import Prepared, chat_job
from datong.server.responses_input import renamed, to_chat
from datong.server.schemas import ResponsesRequest
from datong.server.sse import EventStream, guarded, while_connected
from datong.server.usage import usage

Json = dict[str, Any]


async def responses(request: HttpRequest) -> Response:
    """The route."""
    context = Context.of(request)
    body = await read(request, ResponsesRequest, context.settings)
    asked, origins = to_chat(body)
    host = await context.host(body.model)
    try:
        prepared = await asyncio.to_thread(chat_job, host, asked, context.settings)
    except (ApiError, DatongError) as error:
        raise renamed(from_engine(error), origins) from None
    context.submit(host, prepared.job)
    answer = ResponseAnswer(host, prepared, body)
    if body.stream:
        events = guarded(answer.stream(), context.failed, answer.failed, b"")
        return EventStream(events, lambda: context.close(host, prepared.job))
    try:
        whole = await while_connected(request, answer.whole())
    finally:
        context.close(host, prepared.job)
    return Response(msgspec.json.encode(whole), media_type="application/json")


class ResponseAnswer:
    """Items of the output as they grow: reasoning, message, function calls, in the order in which they come."""

    def __init__(self, host: Host, prepared: Prepared, body: ResponsesRequest) -> None:
        self._host, self._job, self._body = host, prepared.job, body
        self._reader = ChoiceReader(prepared, body.parallel_tool_calls is not False)
        self._id, self._created = new_id("resp"), int(time.time())
        self._output: list[Json] = []
        self._number = 0
        self._logprobs: list[Json] = []  # of tokens whose text has not come yet

    def failed(self, error: ApiError) -> bytes:
        """The last event of a stream that cannot go on."""
        return self._event("error", code=error.code, message=error.message, param=error.param)

    def _document(self, status: str) -> Json:
        body, finish = self._body, self._job.requests[0].result.finish_reason
        done = status == "completed"
        cut = done and finish in (LENGTH, "timeout")
        found = usage(self._job, 1, self._reader.reasoning_tokens)
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": "incomplete" if cut else status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens" if finish == LENGTH else finish} if cut else None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "model": self._host.name,
            "output": list(self._output),
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": None,
            "store": False,
            "temperature": body.temperature,
            "text": body.text or {"format": {"type": "text"}},
            "tool_choice": body.tool_choice or "auto",
            "tools": body.tools or [],
            "top_p": body.top_p,
            "truncation": "disabled",
            "usage": {
                "input_tokens": found.prompt_tokens,
                "input_tokens_details": {"cached_tokens": found.prompt_tokens_details.cached_tokens},
                "output_tokens": found.completion_tokens,
                "output_tokens_details": {"reasoning_tokens": found.completion_tokens_details.reasoning_tokens},
                "total_tokens": found.total_tokens,
            }
            if done
            else None,
        }

    async def whole(self) -> Json:
        """Everything at once."""
        async for _ in self._events():
            pass
        return self._document("completed")

    async def stream(self) -> AsyncIterator[bytes]:
        """Typed events with rising numbers."""
        for kind in ("response.created", "response.in_progress"):
            yield self._event(kind, response=self._document("in_progress"))
        async for event in self._events():
            yield event
        document = self._document("completed")
        yield self._event(f"response.{document['status']}", response=document)

    def _event(self, kind: str, **fields: Any) -> bytes:
        data = msgspec.json.encode({"type": kind, "sequence_number": self._number, **fields})
        self._number += 1
        return b"event: " + kind.encode() + b"\ndata: " + data + b"\n\n"

    async def _events(self) -> AsyncIterator[bytes]:
        async for chunk in self._job.chunks():
            found = chat_logprobs(self._host.model.tokenizer, chunk.logprobs)
            self._logprobs += msgspec.to_builtins(found.content or []) if found else []
            for delta in self._reader.read(chunk):
                for event in self._grow(delta):
                    yield event
        for event in self._close():
            yield event

    def _grow(self, delta: Delta) -> list[bytes]:
        logprobs, self._logprobs = self._logprobs, []
        if isinstance(delta.tool_calls, list):
            return [*self._close(), *(event for call in delta.tool_calls for event in self._call(call))]
        thought = isinstance(delta.reasoning_content, str)
        text = delta.reasoning_content if isinstance(delta.reasoning_content, str) else delta.content
        if not isinstance(text, str) or not text:
            return []
        events = []
        kind = "reasoning" if thought else "message"
        if not self._output or self._output[-1]["type"] != kind or self._output[-1].get("status") == "completed":
            events = [*self._close(), *self._open(kind)]
        part = self._output[-1]["content"][0]
        part["text"] += text
        if not thought:
            part["logprobs"] += logprobs
        name = "reasoning_text" if thought else "output_text"
        extra: Json = {} if thought else {"logprobs": logprobs}
        return [*events, self._event(f"response.{name}.delta", **self._place(), delta=text, **extra)]

    def _open(self, kind: str) -> list[bytes]:
        """A new item with its one part."""
        if kind == "reasoning":
            part: Json = {"type": "reasoning_text", "text": ""}
            item: Json = {"id": new_id("rs"), "type": "reasoning", "summary": [], "content": [part]}
        else:
            part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            item = {"id": new_id("msg"), "type": "message", "role": "assistant", "content": [part]}
        item["status"] = "in_progress"
        self._output.append(item)
        index = len(self._output) - 1
        added = self._event("response.output_item.added", output_index=index, item={**item, "content": []})
        return [added, self._event("response.content_part.added", **self._place(), part=part)]

    def _place(self) -> Json:
        return {"item_id": self._output[-1]["id"], "output_index": len(self._output) - 1, "content_index": 0}

    def _close(self) -> list[bytes]:
        """End the open item, if there is one."""
        if not self._output or self._output[-1]["status"] == "completed":
            return []
        item = self._output[-1]
        item["status"] = "completed"
        part = item["content"][0]
        name = part["type"]
        extra: Json = {} if name == "reasoning_text" else {"logprobs": part["logprobs"]}
        return [
            self._event(f"response.{name}.done", **self._place(), text=part["text"], **extra),
            self._event("response.content_part.done", **self._place(), part=part),
            self._event("response.output_item.done", output_index=len(self._output) - 1, item=item),
        ]

    def _call(self, call: ToolCall) -> list[bytes]:
        """A whole call: its item, its arguments, its end."""
        arguments = call.function.arguments
        item = {
            "id": new_id("fc"),
            "type": "function_call",
            "call_id": call.id,
            "name": call.function.name,
            "arguments": arguments,
            "status": "completed",
        }
        self._output.append(item)
        place = {"item_id": item["id"], "output_index": len(self._output) - 1}
        begun = {**item, "arguments": "", "status": "in_progress"}
        return [
            self._event("response.output_item.added", output_index=place["output_index"], item=begun),
            self._event("response.function_call_arguments.delta", **place, delta=arguments),
            self._event("response.function_call_arguments.done", **place, name=call.function.name, arguments=arguments),
            self._event("response.output_item.done", output_index=place["output_index"], item=item),
        ]
