"""What clients, operators and networks do wrong: the error has OpenAI's form, the server stays, blocks come back."""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

ASK: dict[str, Any] = {"model": "tiny", "prompt": "Hello", "temperature": 0}
LONG: dict[str, Any] = {**ASK, "max_tokens": 240, "ignore_eos": True}
KEY = "sk-test-0123456789"
SMALL = {
    "DATONG_SERVE_MAX_REQUESTS": "3",
    "DATONG_SERVE_MAX_BODY": "20000",
    "DATONG_SERVE_BODY_SECONDS": "0.5",
    "DATONG_SERVE_HEADER_SECONDS": "0.5",
    "DATONG_API_KEYS": f"app={KEY}",
}
AUTH = {"Authorization": f"Bearer {KEY}"}


@pytest.fixture(scope="module")
def small(serve: Any, package_template: Path) -> Any:
    """A server with small limits and a key."""
    return serve(package_template, env=SMALL)


@pytest.fixture
def slow(serve: Any, package_template: Path) -> Any:
    """A server of its own, to be ended; steps of one token make answers take a while."""
    return serve(package_template, "--context", 256)


def error(answer: httpx.Response) -> dict[str, Any]:
    found = answer.json()["error"]
    assert found.keys() == {"message", "type", "param", "code"} and found["message"]
    assert answer.headers["x-request-id"]
    return dict(found)


# ── bodies ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{", "invalid_json"),
        (b"", "invalid_json"),
        (b'{"model": "ti\xff\xfeny"}', "invalid_json"),
        (b"[" * 100_000, "invalid_type"),
        (b'{"messages": ' + b"[" * 100_000, "unknown_parameter"),
        (b"[]", "invalid_type"),
        (b'{"model": 3}', "invalid_type"),
        (b'{"prompt": "a"}', "missing_required_parameter"),
        (b'{"model": "tiny", "prompt": "\\ud800"}', "invalid_json"),
        (b'{"model": "tiny", "prompt": "a", "max_tokens": 1e400}', "invalid_type"),
    ],
)
def test_a_malformed_body_is_400(live: Any, body: bytes, code: str) -> None:
    answer = live.post("/v1/completions", content=body)
    assert answer.status_code == 400 and error(answer)["code"] == code, answer.text


def test_a_large_body_is_413_and_the_client_sees_it(small: Any) -> None:
    for size in (20_001, 100 << 20):
        answer = small.post("/v1/completions", content=b"x" * size, headers=AUTH)
        assert answer.status_code == 413 and error(answer)["code"] == "body_too_large"
    assert small.get("/health").status_code == 200


def test_other_routes_and_methods(live: Any) -> None:
    for path in ("/v1/nothing", "/v1/../etc/passwd", "/%2e%2e/etc/passwd"):
        assert error(live.get(path))["code"] == "not_found" and live.get(path).status_code == 404
    answer = live.get("/v1/completions")
    assert answer.status_code == 405 and error(answer)["code"] == "method_not_allowed"
    answer = live.get("/v1/models/..%2f..%2fetc%2fpasswd")
    assert answer.status_code == 404 and error(answer)["code"] == "model_not_found"


def test_request_ids_come_back(live: Any) -> None:
    assert live.get("/v1/models", headers={"X-Request-Id": "my-1"}).headers["x-request-id"] == "my-1"
    assert live.get("/v1/models", headers={"X-Request-Id": "a b\t{}"}).headers["x-request-id"].startswith("req-")


# ── connections that hang ────────────────────────────────────────────────────────────────────────────────────────────


def closed_by_server(live: Any, *parts: bytes) -> bytes:
    """Send, then wait until the other side closes."""
    url = httpx.URL(live.url)
    with socket.create_connection((url.host, url.port), timeout=30) as connection:
        for part in parts:
            connection.sendall(part)
        data = b""
        while piece := connection.recv(65536):
            data += piece
        return data


def test_slow_headers_and_slow_bodies_are_cut_off(small: Any) -> None:
    assert closed_by_server(small) == b""
    assert closed_by_server(small, b"POST /v1/completions HTTP/1.1\r\nHost: a\r\n") == b""
    first = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"
    assert closed_by_server(small, first, b"GET /hea").count(b"HTTP/1.1 200") == 1
    head = f"POST /v1/completions HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {KEY}\r\nContent-Length: 99\r\n\r\n{{"
    answer = closed_by_server(small, head.encode())
    assert answer.startswith(b"HTTP/1.1 408") and b"body_timeout" in answer


def test_nonsense_instead_of_http_is_refused(live: Any) -> None:
    assert closed_by_server(live, b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n").startswith(b"HTTP/1.1 400")
    assert live.get("/health").status_code == 200


def test_a_client_that_does_not_read_is_cut_off(
    serve: Any, package_template: Path, until_true: Callable[..., None]
) -> None:
    """Megabytes wait for it: more than the sockets hold."""
    live = serve(package_template, "--send-seconds", 0.5)
    url = httpx.URL(live.url)
    body = json.dumps({**LONG, "stream": True, "n": 16, "logprobs": 100}).encode()
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect((url.host, url.port))
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        until_true(lambda: any(line["event"] == "request" for line in live.lines))
    assert live.metric("datong_cache_blocks_held") == live.metric("datong_requests_live") == 0
    assert live.client().completions.create(**{**ASK, "max_tokens": 4}).choices[0].text


# ── keys ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_keys(small: Any, serve: Any, package_template: Path, tmp_path: Path) -> None:
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {KEY}"}):
        answer = small.get("/v1/models", headers=headers)
        assert answer.status_code == 401 and error(answer)["type"] == "authentication_error"
    with pytest.raises(openai.AuthenticationError):
        small.client().models.list()
    assert small.client(api_key=KEY).models.list().data[0].id == "tiny"
    assert small.get("/health").status_code == small.get("/ready").status_code == 200
    assert small.get("/metrics").status_code == 401
    file = tmp_path / "keys"
    file.write_text(f"# ours\nsha256:{hashlib.sha256(b'other').hexdigest()} plant-7\n")
    other = serve(package_template, "--api-keys", file)
    assert other.client(api_key="other").models.list().data and other.get("/v1/models").status_code == 401
    other.stop()
    assert [line.get("key") for line in other.lines if line["event"] == "request"] == ["plant-7", None]
    assert "other" not in json.dumps(other.lines)


# ── load ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_full_queue_is_429_with_retry_after(small: Any) -> None:
    """Three answers at once are allowed, twelve times three come."""
    got: list[httpx.Response] = []
    body = {**LONG, "n": 3}
    threads = [
        threading.Thread(target=lambda: got.append(small.post("/v1/completions", json=body, headers=AUTH)))
        for _ in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    refused = [answer for answer in got if answer.status_code != 200]
    assert refused and len(got) - len(refused) >= 1
    for answer in refused:
        assert answer.status_code == 429 and error(answer)["code"] == "queue_full"
        assert 1 <= int(answer.headers["retry-after"]) <= 60
    assert small.post("/v1/completions", json=body, headers=AUTH).status_code == 200


def test_a_client_that_goes_away_frees_its_blocks(live: Any, until_true: Callable[..., None]) -> None:
    before = live.metric("datong_generated_tokens_total")
    url = httpx.URL(live.url)
    for streaming in (True, False):
        body = json.dumps({**LONG, "stream": streaming, "n": 8}).encode()
        for _ in range(5):
            with socket.create_connection((url.host, url.port), timeout=30) as connection:
                head = f"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n"
                connection.sendall(head.encode() + body)
                if streaming:
                    assert connection.recv(4096).startswith(b"HTTP/1.1 200")
    until_true(lambda: live.metric("datong_requests_live") == 0)
    until_true(lambda: live.metric("datong_cache_blocks_held") == 0)
    assert live.metric("datong_requests_running") == live.metric("datong_requests_waiting") == 0
    assert live.metric("datong_generated_tokens_total") - before < 80 * 240, "the work was dropped, not finished"
    assert live.client().completions.create(**{**ASK, "max_tokens": 4}).choices[0].text


def test_the_deadline(live: Any) -> None:
    late = live.post("/v1/completions", json={**LONG, "timeout_s": 1e-6})
    assert late.status_code == 408 and error(late)["code"] == "deadline_exceeded"
    assert late.headers["x-should-retry"] == "false"
    whole = live.post("/v1/completions", json=LONG).json()["choices"][0]["text"]
    tries = (live.post("/v1/completions", json={**LONG, "timeout_s": 0.02 * 1.3**i, "n": 16}) for i in range(40))
    cut = next(answer for answer in tries if answer.status_code == 200).json()["choices"]
    assert {choice["finish_reason"] for choice in cut} == {"timeout"}
    assert all(whole.startswith(choice["text"].rstrip("\ufffd")) for choice in cut)
    assert live.metric("datong_cache_blocks_held") == 0


def test_priority_goes_first(serve: Any, package_template: Path) -> None:
    """One answer at a time fits the cache; of two that wait, the later one with priority is first."""
    live = serve(package_template, "--cache-tokens", 256, env={"DATONG_SERVE_MAX_REQUESTS": "64"})
    order: list[int] = []

    def ask(priority: int) -> None:
        body = {**LONG, "max_tokens": 200, "priority": priority}
        assert live.post("/v1/completions", json=body).status_code == 200
        order.append(priority)

    threads = [threading.Thread(target=ask, args=(priority,)) for priority in [0] * 40 + [5]]
    for thread in threads[:-1]:
        thread.start()
    while live.metric("datong_requests_waiting") < 5:
        time.sleep(0.01)
    threads[-1].start()
    for thread in threads:
        thread.join()
    assert order.index(5) < len(order) - 3
    assert live.metric("datong_cache_blocks_held") == 0


def test_an_exhausted_cache_makes_answers_wait_not_wrong(serve: Any, package_template: Path) -> None:
    """Room for two long answers, twelve come: sequences are sent back and computed again."""
    live = serve(package_template, "--cache-tokens", 512, "--context", 256)
    alone = live.post("/v1/completions", json=LONG).json()["choices"][0]["text"]
    got: list[httpx.Response] = []
    threads = [threading.Thread(target=lambda: got.append(live.post("/v1/completions", json=LONG))) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answer.status_code for answer in got] == [200] * 12
    assert {answer.json()["choices"][0]["text"] for answer in got} == {alone}
    assert live.metric("datong_preemptions_total") > 0, "the cache was never full"
    assert live.metric("datong_cache_blocks_held") == 0
    over = live.post("/v1/completions", json={**ASK, "prompt": "x" * 300})
    assert over.status_code == 400 and error(over)["code"] == "context_length_exceeded"
    assert error(over)["param"] == "prompt"


# ── the end ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_sigterm_finishes_what_runs_and_takes_nothing_new(slow: Any, until_true: Callable[..., None]) -> None:
    body = {**LONG, "stream": True, "n": 16}
    with contextlib.ExitStack() as stack:
        streams = [
            stack.enter_context(slow.http.stream("POST", f"{slow.url}/v1/completions", json=body)) for _ in "abc"
        ]
        lines = [stream.iter_lines() for stream in streams]
        next(lines[0])
        slow.process.terminate()
        until_true(lambda: any(line["event"] == "draining" for line in slow.lines))
        refused = slow.post("/v1/completions", json=ASK)
        assert slow.get("/ready").status_code == 503 and slow.get("/health").status_code == 200
        ended = [[line for line in rest if line] for rest in lines]
    assert refused.status_code == 503 and error(refused)["code"] == "shutting_down"
    for events in ended:
        assert events[-1] == "data: [DONE]"
        assert sum('"finish_reason":"length"' in event for event in events) == 16
    assert slow.stop() == 0


def test_killed_and_started_again(serve: Any, package_template: Path) -> None:
    """Nothing that a killed server leaves behind is in the way of the next one, on the same port."""
    first = serve(package_template)
    whole = first.post("/v1/completions", json=LONG).json()["choices"][0]["text"]
    with first.http.stream("POST", f"{first.url}/v1/completions", json={**LONG, "stream": True, "n": 16}) as stream:
        lines = stream.iter_lines()
        next(lines)
        first.process.kill()
        with pytest.raises(httpx.TransportError):
            list(lines)
    first.stop()
    again = serve(package_template, "--port", httpx.URL(first.url).port)
    assert again.url == first.url
    assert again.post("/v1/completions", json=LONG).json()["choices"][0]["text"] == whole
    assert again.metric("datong_cache_blocks_held") == 0


def test_the_log_holds_no_text(slow: Any) -> None:
    secret = "zyxw"
    slow.client().completions.create(model="tiny", prompt=secret, max_tokens=3)
    slow.client().chat.completions.create(model="tiny", messages=[{"role": "user", "content": secret}], max_tokens=3)
    slow.stop()
    requests = [line for line in slow.lines if line["event"] == "request"]
    assert [line["status"] for line in requests] == [200, 200] and secret not in json.dumps(slow.lines)
    assert all(line["completion_tokens"] <= 3 and line["ttft_s"] >= 0 and line["id"] for line in requests)


def test_a_port_in_use_is_said(cli: Any, live: Any, package: Path) -> None:
    ended = cli("serve", package, "--port", httpx.URL(live.url).port)
    assert ended.code == 2 and "cannot be bound" in ended.err
