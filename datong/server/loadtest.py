"""Load for any server that speaks the OpenAI API: when requests come, one stream for each, and what clients saw.

h11 over asyncio's own sockets: a whole HTTP client takes more of a small machine than the server that it measures.
"""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from statistics import fmean
from time import perf_counter
from typing import Any
from urllib.parse import SplitResult, urlsplit

import h11
import msgspec

from datong.errors import InvalidRequest

WHERE = "bench serve"
CHUNK = 1 << 16  # bytes read at once
SHARES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
Prompt = str | Sequence[int]
Told = Callable[[int], None]  # how many requests have ended


@dataclass(frozen=True)
class Plan:
    """What is asked, and when.

    Either `rate` (requests per second, arriving whether or not the server keeps up) or `clients` (each asks again when
    it has its answer). The run ends after `requests`, or takes no more after `seconds`.
    """

    url: str  # with or without /v1
    model: str
    prompts: Sequence[Prompt]  # taken in turn
    max_tokens: int = 64
    requests: int = 100
    seconds: float = float("inf")
    clients: int = 8
    rate: float = 0.0
    arrivals: str = "poisson"  # or fixed
    chat: bool = False
    key: str = ""
    seed: int = 0
    timeout: float = 600.0  # seconds, of one request
    extra: dict[str, Any] = field(default_factory=dict)  # more fields of each body


@dataclass
class Answer:
    """One request as its client saw it; times in seconds since the run began."""

    begin: float
    first: float = 0.0  # when the first token came
    last: float = 0.0
    tokens: int = 0  # as the server counts them, else the pieces
    pieces: int = 0
    between: list[float] = field(default_factory=list)  # of the pieces
    error: str = ""


async def run(plan: Plan, told: Told = lambda ended: None) -> list[Answer]:
    """Carry out a plan; every request has an answer or an error. Raises InvalidRequest for a URL that is none."""
    address, start, answers, number = _address(plan.url), perf_counter(), [], iter(range(plan.requests))
    ended = count(1)
    rng = random.Random(plan.seed)  # arrivals, no secrets

    async def one(index: int) -> None:
        answer = Answer(perf_counter() - start)
        answers.append(answer)
        try:
            async with asyncio.timeout(plan.timeout):
                await _ask(plan, address, plan.prompts[index % len(plan.prompts)], answer, start)
        except TimeoutError:
            answer.error = f"no answer within {plan.timeout:g} s"
        except (OSError, h11.RemoteProtocolError, msgspec.DecodeError) as error:
            answer.error = f"{type(error).__name__}: {error}"
        told(next(ended))

    async def client() -> None:
        for index in number:
            if perf_counter() - start >= plan.seconds:
                return
            await one(index)

    if not plan.rate:
        await asyncio.gather(*(client() for _ in range(plan.clients)))
        return answers
    tasks, due = [], 0.0
    for index in number:
        due += rng.expovariate(plan.rate) if plan.arrivals == "poisson" else 1 / plan.rate
        if due >= plan.seconds:
            break
        await asyncio.sleep(max(0.0, start + due - perf_counter()))
        tasks.append(asyncio.create_task(one(index)))
    await asyncio.gather(*tasks)
    return answers


def summary(answers: Sequence[Answer]) -> dict[str, Any]:
    """Counts, rates, and percentiles in milliseconds.

    ttft: from the request to the first token; tpot: (last token - first) / (tokens - 1), per answer; between: of
    neighbouring pieces of a stream; whole: from the request to the end.
    """
    good = [a for a in answers if not a.error]
    errors: dict[str, int] = {}
    for answer in answers:
        if answer.error:
            errors[answer.error] = errors.get(answer.error, 0) + 1
    seconds = max((a.last for a in good), default=0.0) - min((a.begin for a in answers), default=0.0)
    tokens = sum(a.tokens for a in good)
    times = {
        "ttft": [a.first - a.begin for a in good if a.pieces],
        "tpot": [(a.last - a.first) / (a.tokens - 1) for a in good if a.tokens > 1],
        "between": [gap for a in good for gap in a.between],
        "whole": [a.last - a.begin for a in good],
    }
    return {
        "requests": len(answers), "answered": len(good), "errors": errors, "seconds": seconds, "tokens": tokens,
        "tokens_per_second": tokens / seconds if seconds > 0 else 0.0,
        "requests_per_second": len(good) / seconds if seconds > 0 else 0.0,
        "milliseconds": {name: _spread(values) for name, values in times.items()},
    }  # fmt: skip


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest one; NaN of nothing."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else float("nan")


def _spread(values: Sequence[float]) -> dict[str, float]:
    found = {"mean": fmean(values) if values else float("nan")}
    found |= {name: percentile(values, share) for name, share in SHARES.items()}
    return {name: round(1e3 * value, 3) for name, value in found.items()} if values else {}


# ---- one request ----------------------------------------------------------------------------------------------------


def _address(url: str) -> SplitResult:
    found = urlsplit(url.rstrip("/").removesuffix("/v1"))
    if found.scheme not in ("http", "https") or not found.hostname:
        raise InvalidRequest(WHERE, f"a server's URL was expected, got `{url}`", "such as: http://127.0.0.1:8000")
    return found


async def _ask(plan: Plan, address: SplitResult, prompt: Prompt, answer: Answer, start: float) -> None:
    body: dict[str, Any] = {"model": plan.model, "max_tokens": plan.max_tokens, "temperature": 0, "stream": True,
                            "stream_options": {"include_usage": True}, **plan.extra}  # fmt: skip
    if plan.chat:
        body["messages"] = [{"role": "user", "content": prompt}]
    else:
        body["prompt"] = prompt
    path = f"{address.path}/v1/{'chat/completions' if plan.chat else 'completions'}"
    text = b""
    last = perf_counter()
    async for status, data in post(address, path, msgspec.json.encode(body), plan.key):
        text += data
        if status != 200:
            answer.error = f"{status}: {_message(text)}"
            continue
        *lines, text = text.split(b"\n")
        for line in lines:
            if not line.startswith(b"data: {"):
                continue
            event = msgspec.json.decode(line[6:])
            if "error" in event:
                answer.error = str(event["error"].get("message", event["error"]))
            if _says_something(event):
                now = perf_counter()
                if answer.pieces:
                    answer.between.append(now - last)
                else:
                    answer.first = now - start
                last, answer.pieces = now, answer.pieces + 1
            if event.get("usage"):
                answer.tokens = int(event["usage"]["completion_tokens"])
    answer.last = (last if answer.pieces else perf_counter()) - start
    answer.tokens = answer.tokens or answer.pieces


def _says_something(event: dict[str, Any]) -> bool:
    for choice in event.get("choices") or ():
        delta = choice.get("delta") or choice
        if any(delta.get(key) for key in ("content", "text", "reasoning_content", "tool_calls")):
            return True
    return False


def _message(body: bytes) -> str:
    try:
        return str(msgspec.json.decode(body)["error"]["message"])[:200]
    except (msgspec.DecodeError, KeyError, TypeError):
        return body[:200].decode(errors="replace")


async def post(address: SplitResult, path: str, body: bytes, key: str = "") -> AsyncIterator[tuple[int, bytes]]:
    """POST JSON on a connection of its own: (status, piece of the answer), as they come. Raises OSError, h11's own."""
    secure = ssl.create_default_context() if address.scheme == "https" else None
    port = address.port or (443 if secure else 80)
    reader, writer = await asyncio.open_connection(address.hostname, port, ssl=secure)
    try:
        connection = h11.Connection(h11.CLIENT)
        headers = [("Host", address.netloc), ("Content-Type", "application/json"), ("Connection", "close"),
                   ("Content-Length", str(len(body)))]  # fmt: skip
        headers += [("Authorization", f"Bearer {key}")] if key else []
        for event in (
            h11.Request(method="POST", target=path, headers=headers),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            writer.write(connection.send(event) or b"")
        await writer.drain()
        status = 0
        while True:
            got = connection.next_event()
            if got is h11.NEED_DATA:
                connection.receive_data(await reader.read(CHUNK))
            elif isinstance(got, h11.Response):
                status = got.status_code
            elif isinstance(got, h11.Data):
                yield status, bytes(got.data)
            elif isinstance(got, h11.EndOfMessage | h11.ConnectionClosed):
                return
    finally:
        writer.close()
