"""Where the time of a request went, as spans: the parts follow each other and fill the whole."""

from __future__ import annotations

import pytest

from datong.server.traces import NANO, Traces


def test_prefill_begins_where_the_queue_ends() -> None:
    pytest.importorskip("opentelemetry.sdk", reason="the extra otel is not installed")
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    # as the log has it: from the arrival to the first token, the queue included
    Traces(provider).request("POST /x", "req-1", 200, 4.0, {"queue_s": 1.0, "ttft_s": 1.5}, "")
    spans = {span.name: span for span in exporter.get_finished_spans()}
    begin = spans["POST /x"].start_time
    found = {
        name: ((spans[name].start_time - begin) / NANO, (spans[name].end_time - begin) / NANO)
        for name in ("queue", "prefill", "decode")
    }
    assert found == {"queue": (0.0, 1.0), "prefill": (1.0, 1.5), "decode": (1.5, 4.0)}
