"""OpenTelemetry traces, where OTEL_EXPORTER_OTLP_ENDPOINT names a collector; needs the extra `otel`.

One span per request, named by its route, and inside it where the time went: queue, prefill, decode. Spans are made when
the request has ended, from what the log says of it, so that serving waits for nothing. A caller's `traceparent`
is continued.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from datong.errors import DatongError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

VARIABLES = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")  # the standard's own names
NANO = 1_000_000_000
KEPT = ("model", "prompt_tokens", "completion_tokens", "finish", "error")  # of the log's line


class Traces:
    """Of one server."""

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider, self._tracer = provider, provider.get_tracer("datong")
        self._propagator = TraceContextTextMapPropagator()

    @classmethod
    def from_environment(cls) -> Traces | None:
        """None where no collector is named. Raises DatongError where the extra is missing."""
        if not any(os.environ.get(name) for name in VARIABLES):
            return None
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError:
            hint = "pip install 'datong[otel]', or unset it"
            raise DatongError("serve", f"{VARIABLES[0]} asks for traces, OpenTelemetry is missing", hint) from None
        name = os.environ.get("OTEL_SERVICE_NAME", "datong")
        provider = TracerProvider(resource=Resource.create({"service.name": name}))
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        return cls(provider)

    def request(self, name: str, id_: str, status: int, seconds: float, line: dict[str, Any], parent: str) -> None:
        """A request that ended now, after `seconds`; `line` is what the log says of it, `parent` its traceparent."""
        end = time.time_ns()
        begin = end - int(seconds * NANO)
        context = self._propagator.extract({"traceparent": parent}) if parent else None
        facts: dict[str, Any] = {"http.response.status_code": status, "datong.request_id": id_}
        facts |= {f"datong.{key}": line[key] for key in KEPT if line.get(key) is not None}
        span = self._tracer.start_span(name, context=context, start_time=begin, attributes=facts)
        from opentelemetry.trace import set_span_in_context

        inside, at = set_span_in_context(span), begin
        queue, first = line.get("queue_s", 0.0), line.get("ttft_s")  # both from the request's arrival on
        parts = {"queue": queue, "prefill": None if first is None else max(0.0, first - queue), "decode": None}
        for part, length in parts.items() if "queue_s" in line else ():
            until = end if length is None else min(end, at + int(length * NANO))
            self._tracer.start_span(part, context=inside, start_time=at).end(until)
            at = until
        span.end(end)

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()
