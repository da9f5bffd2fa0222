"""What a route needs: the server's parts, and this request's line in the log."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request as HttpRequest

from datong.server import errors
from datong.server.hosts import Host, Hosts
from datong.server.job import Job
from datong.server.log import log_exception
from datong.server.metrics import Metrics
from datong.server.settings import Settings
from datong.server.traces import Traces


def new_id(kind: str) -> str:
    """`chatcmpl-…`: 16 random bytes."""
    return f"{kind}-{secrets.token_hex(16)}"


@dataclass(slots=True)
class Parts:
    """Of the whole server."""

    settings: Settings
    hosts: Hosts
    metrics: Metrics
    draining: bool = False
    traces: Traces | None = None


@dataclass(slots=True)
class Context:
    """Of one request."""

    parts: Parts
    id: str
    key: str | None = None
    line: dict[str, Any] = field(default_factory=dict)  # for the log
    pinned: list[Host] = field(default_factory=list)

    @classmethod
    def of(cls, request: HttpRequest) -> Context:
        """The gate (gate.py) has put it there."""
        found = request.scope["datong"]
        assert isinstance(found, Context)
        return found

    def release(self) -> None:
        """The request is over: its models may go."""
        for host in self.pinned:
            self.parts.hosts.unpin(host)

    @property
    def settings(self) -> Settings:
        """Of the server."""
        return self.parts.settings

    async def host(self, name: str | None) -> Host:
        """Loaded if need be, for as long as the request lasts. Raises ApiError 404, 503."""
        if self.parts.draining:
            raise errors.draining()
        host = await self.parts.hosts.pin(name)
        self.pinned.append(host)
        self.line["model"] = host.name
        return host

    def submit(self, host: Host, job: Job) -> None:
        """Raises ApiError 429, 503."""
        if self.parts.draining:
            raise errors.draining()
        host.service.submit(job)

    def close(self, host: Host, job: Job) -> None:
        """Whatever happened: give back what the job holds, count it, note it for the log."""
        host.service.cancel(job)
        results = [request.result for request in job.requests]
        self.line["prompt_tokens"] = sum(len(unit.sequence.tokens) for unit in job.scores) or (
            results[0].prompt_tokens if results else 0
        )
        self.line["completion_tokens"] = sum(len(result.tokens) for result in results)
        if job.started:
            self.line["queue_s"] = round(job.started - job.born, 4)
        firsts = [result.timings.prefill_seconds for result in results if result.tokens]
        if firsts:
            self.line["ttft_s"] = round(min(firsts), 4)
        self.line["finish"] = [result.finish_reason or "cancelled" for result in results]
        if self.settings.log_prompts:
            units = job.requests or job.scores
            tokens = {tuple(unit.sequence.tokens[: unit.sequence.prompt_len or None]): None for unit in units}
            self.line["prompts"] = [host.model.tokenizer.decode(list(one)) for one in tokens]
            self.line["answers"] = [result.text for result in results]
        self.parts.metrics.job(host.name, job)

    @property
    def failed(self) -> Callable[[BaseException], None]:
        """For errors after the status was sent."""

        def note(error: BaseException) -> None:
            found = errors.from_engine(error)
            self.line["error"] = found.code
            if found.status >= 500:
                log_exception("stream", error)

        return note
