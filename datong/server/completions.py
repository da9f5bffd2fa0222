"""`POST /v1/completions`: texts continued; with `echo` and `logprobs`, the prompt's own log-probabilities too."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from datong.engine.request import Request
from datong.engine.results import LENGTH, Chunk
from datong.engine.sampler import Sampled
from datong.server.answers import Text, TextChoice, TextLogprobs, Usage
from datong.server.body import read
from datong.server.context import Context, new_id
from datong.server.hosts import Host
from datong.server.job import Job
from datong.server.logprobs import text_logprobs
from datong.server.prompts import Prepared, check_completion, completion_job
from datong.server.schemas import CompletionRequest
from datong.server.scoring import PromptScore
from datong.server.sse import EventStream, event, guarded, while_connected
from datong.server.usage import usage


async def completions(request: HttpRequest) -> Response:
    """The route."""
    context = Context.of(request)
    body = await read(request, CompletionRequest, context.settings)
    check_completion(body)
    host = await context.host(body.model)
    prepared = await asyncio.to_thread(completion_job, host, body, context.settings)
    context.submit(host, prepared.job)
    answer = TextAnswer(host, prepared, body)
    if body.stream:
        events = guarded(answer.stream(), context.failed)
        return EventStream(events, lambda: context.close(host, prepared.job))
    try:
        whole = await while_connected(request, answer.whole())
    finally:
        context.close(host, prepared.job)
    return Response(msgspec.json.encode(whole), media_type="application/json")


class TextAnswer:
    """Formats the chunks of one job. Choices are numbered prompt by prompt: prompt i has i * n to i * n + n - 1."""

    def __init__(self, host: Host, prepared: Prepared, body: CompletionRequest) -> None:
        self._host, self._job, self._body = host, prepared.job, body
        self._tokenizer = host.model.tokenizer
        self._tried, self._wanted = prepared.choices, body.n or 1
        self._prompts = max(1, len(self._job.requests) // self._tried, len(self._job.scores))
        self._id, self._created = new_id("cmpl"), int(time.time())

    def _usage(self) -> Usage:
        return usage(self._job, self._prompts)

    def _document(self, choices: list[TextChoice], found: Usage | msgspec.UnsetType | None) -> Text:
        return Text(self._id, self._created, self._host.name, choices, found)

    def _echoed(self, prompt: int) -> str:
        """The prompt's text as it is shown before its answer; empty without `echo`."""
        if not self._body.echo:
            return ""
        given = self._body.prompt
        if isinstance(given, str):
            return given
        one = given[prompt] if not isinstance(given[0], int) else None
        return one if isinstance(one, str) else self._tokenizer.decode(_prompt_tokens(self._job, prompt, self._tried))

    async def whole(self) -> Text:
        """Everything at once; of `best_of` answers the likeliest `n` per token."""
        await self._job.wait()
        choices: list[TextChoice] = []
        for prompt in range(self._prompts):
            answers = self._job.requests[prompt * self._tried : (prompt + 1) * self._tried]
            if self._tried > self._wanted:
                answers = sorted(answers, key=_likelihood, reverse=True)[: self._wanted]
            echoed = self._echoed(prompt)
            for answer in answers:
                result = answer.result
                logprobs = self._logprobs(prompt, result.logprobs or [], echoed)
                choices.append(TextChoice(len(choices), echoed + result.text, result.finish_reason, logprobs))
            if not answers:  # max_tokens 0: the prompt alone
                choices.append(TextChoice(len(choices), echoed, LENGTH, self._logprobs(prompt, [], echoed)))
        return self._document(choices, self._usage())

    def _logprobs(self, prompt: int, sampled: list[Sampled], echoed: str) -> TextLogprobs | None:
        if self._body.logprobs is None:
            return None
        before: list[Sampled | int] = []
        if self._body.echo and self._job.scores:
            score = self._job.scores[prompt]
            assert isinstance(score, PromptScore)
            before = [score.sequence.tokens[0], *score.sampled]
        offset = 0 if before else len(echoed)
        return text_logprobs(self._tokenizer, [*before, *sampled], offset, self._body.logprobs)

    async def stream(self) -> AsyncIterator[bytes]:
        """Pieces as they come; the first of each choice carries the echoed prompt."""
        with_usage = self._body.stream_options is not None and self._body.stream_options.include_usage
        empty = None if with_usage else msgspec.UNSET
        lengths: dict[int, int] = {}
        async for chunk in self._job.chunks():
            choice = self._piece(chunk, lengths)
            if choice is not None:
                yield event(self._document([choice], empty))
        for prompt, score in enumerate(self._job.scores if not self._job.requests else []):
            echoed = self._echoed(prompt)
            assert score.done
            yield event(self._document([TextChoice(prompt, echoed, LENGTH, self._logprobs(prompt, [], echoed))], empty))
        if with_usage:
            yield event(self._document([], self._usage()))

    def _piece(self, chunk: Chunk, lengths: dict[int, int]) -> TextChoice | None:
        """One chunk; None when it has nothing to show yet. `lengths`: characters so far, per choice."""
        first = chunk.index not in lengths
        prompt = chunk.index // self._tried
        echoed = self._echoed(prompt) if first else ""
        offset = lengths.get(chunk.index, 0)
        logprobs = None
        if self._body.logprobs is not None and chunk.logprobs is not None:
            sampled = list(chunk.logprobs)
            if first:
                logprobs = self._logprobs(prompt, sampled, echoed)
            else:
                logprobs = text_logprobs(self._tokenizer, sampled, offset, self._body.logprobs)
        text = echoed + chunk.text
        lengths[chunk.index] = offset + len(text)
        if not text and logprobs is None and chunk.finish_reason is None:
            return None
        return TextChoice(chunk.index, text, chunk.finish_reason, logprobs)


def _likelihood(request: Request) -> float:
    """Mean log-probability per token."""
    logprobs = request.result.logprobs or []
    return sum(one.logprob or 0.0 for one in logprobs) / max(1, len(logprobs))


def _prompt_tokens(job: Job, prompt: int, tried: int) -> list[int]:
    if job.requests:
        sequence = job.requests[prompt * tried].sequence
        return sequence.tokens[: sequence.prompt_len]
    return job.scores[prompt].sequence.tokens
