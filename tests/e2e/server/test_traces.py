"""Traces of a live server, sent to a collector that this test is."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def collector() -> Iterator[tuple[str, list[bytes]]]:
    """Its URL, and the bodies that came."""
    bodies: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", bodies
    server.shutdown()
    server.server_close()
    thread.join()


def test_spans_of_a_request(
    serve: Callable[..., Any], package_template: Path, collector: tuple[str, list[bytes]]
) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the extra otel is not installed")
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    url, bodies = collector
    env = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": url,
        "OTEL_BSP_SCHEDULE_DELAY": "100",
        "OTEL_EXPORTER_OTLP_COMPRESSION": "none",
    }
    live = serve(package_template, env=env)
    body = {"model": "tiny", "prompt": "a b c", "max_tokens": 6, "ignore_eos": True}
    assert live.post("/v1/completions", json=body, headers={"traceparent": PARENT}).status_code == 200
    assert live.stop() == 0
    spans: dict[str, Any] = {}
    for one in bodies:
        sent = ExportTraceServiceRequest.FromString(one)
        for resource in sent.resource_spans:
            assert any(a.value.string_value == "datong" for a in resource.resource.attributes)
            spans |= {span.name: span for scope in resource.scope_spans for span in scope.spans}
    whole = spans["POST /v1/completions"]
    assert whole.trace_id.hex() in PARENT and whole.parent_span_id.hex() in PARENT
    facts = {a.key: a.value for a in whole.attributes}
    assert facts["datong.model"].string_value == "tiny" and facts["datong.completion_tokens"].int_value == 6
    parts = [spans[name] for name in ("queue", "prefill", "decode")]
    assert all(part.parent_span_id == whole.span_id for part in parts)
    times = [whole.start_time_unix_nano, *(p.end_time_unix_nano for p in parts)]
    assert times == sorted(times) and times[-1] == whole.end_time_unix_nano
