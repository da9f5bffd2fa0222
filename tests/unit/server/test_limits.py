"""Limits of a key: the window slides, what was refused does not count."""

from __future__ import annotations

from pathlib import Path

import pytest

from datong.errors import DatongError
from datong.server.auth import Keys
from datong.server.errors import ApiError
from datong.server.limits import Limits, Meter


def refused(meter: Meter, now: float) -> ApiError:
    with pytest.raises(ApiError) as caught:
        meter.enter(now)
    assert caught.value.status == 429 and caught.value.code == "rate_limit_exceeded"
    return caught.value


def test_requests_in_any_minute() -> None:
    meter = Meter(Limits(requests=2))
    for now in (0.0, 50.0):
        meter.enter(now)
        meter.leave(0, now)
    error = refused(meter, 55.5)
    assert error.headers["Retry-After"] == "5" and "2 requests a minute; try again in 5 s" in error.message
    assert error.headers["x-ratelimit-remaining-requests"] == "0"
    meter.enter(60.5)
    assert refused(meter, 61.0).headers["Retry-After"] == "49", "the one at 50 still counts, the refused ones do not"


def test_tokens_count_when_the_answer_ends() -> None:
    meter = Meter(Limits(tokens=100))
    meter.enter(0.0)
    meter.enter(1.0)
    meter.leave(90, 10.0)
    meter.leave(30, 20.0)
    assert meter.headers() == {"x-ratelimit-limit-tokens": "100", "x-ratelimit-remaining-tokens": "0"}
    assert refused(meter, 21.0).headers["Retry-After"] == "49"
    meter.enter(70.5)
    assert meter.headers()["x-ratelimit-remaining-tokens"] == "70"


def test_at_once() -> None:
    meter = Meter(Limits(concurrent=1))
    meter.enter(0.0)
    assert "1 requests at once" in refused(meter, 0.1).message
    meter.leave(5, 0.2)
    meter.enter(0.3)


def test_limits_stand_in_the_key_file(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    one, two = "a" * 64, "b" * 64
    file.write_text(f"sha256:{one} plant requests=60 tokens=5000 # a robot\nsha256:{two}\n")
    keys = Keys.load(file)
    meter = keys.meter("plant")
    assert meter is not None and meter.limits == Limits(60, 5000) and keys.meter("key-2") is None
    file.write_text(f"sha256:{one} plant speed=3\n")
    with pytest.raises(DatongError, match="line 1 should be"):
        Keys.load(file)
