"""What `/metrics` says about work that this test knows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

REPEATS = "one two three one two three one two three"


def test_numbers_are_those_of_the_work(serve: Callable[..., Any], package_template: Path) -> None:
    live = serve(package_template, "--speculate", "lookup")
    with live.client() as client:
        ask: dict[str, Any] = {"model": "tiny", "prompt": REPEATS, "max_tokens": 30, "temperature": 0}
        ask["logit_bias"] = {"40": 100}  # the same token again and again, which is easy to guess
        usage = client.completions.create(**ask, n=4, extra_body={"ignore_eos": True}).usage
    assert live.metric("datong_generated_tokens_total") == usage.completion_tokens == 120
    assert live.metric("datong_time_to_first_token_seconds_count") == 4
    assert live.metric("datong_queue_seconds_count") == 1
    steps = live.metric("datong_batch_size_count")
    assert 0 < live.metric("datong_batch_size_sum") <= 4 * steps
    assert f'datong_batch_size_bucket{{le="4.0",model="tiny"}} {steps}' in live.get("/metrics").text
    guessed, accepted = live.metric("datong_guessed_tokens_total"), live.metric("datong_accepted_tokens_total")
    assert 0 < accepted <= guessed
    assert live.metric("datong_batch_size_sum") >= 120 - accepted, "each sequence in each step gives one token or more"


def test_a_speculating_server_says_what_a_plain_one_says(
    serve: Callable[..., Any], package_template: Path, offline: Any
) -> None:
    live = serve(package_template, "--speculate", "lookup")
    with live.client() as client:
        for settings in ({"temperature": 0}, {"temperature": 0.9, "seed": 4}):
            got = client.completions.create(model="tiny", prompt=REPEATS, max_tokens=60, **settings)
            assert got.choices[0].text == offline.generate(REPEATS, max_tokens=60, **settings).text
