"""Which waiting jobs start, step by step, in this thread: a live server would race with its clients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import datong
from datong.engine.request import Request
from datong.engine.sampler import SamplingParams
from datong.server.job import END, Job
from datong.server.service import SHORT, Service

BLOCK = 32  # tokens


@pytest.fixture
def service(package_template: Path) -> Service:
    """32 blocks, of which two are kept for short prompts; its thread is not started."""
    model = datong.load(package_template, threads=1, cache_tokens=32 * BLOCK)
    assert model.engine.pool.blocks // SHORT == 2
    return Service(model, 256)


def job(number: int, prompt: int, priority: int = 0, answer: int = 6) -> Job:
    tokens = [30 + number % 90] * prompt
    return Job([Request(tokens, prompt + answer, SamplingParams())], priority=priority)


def ends(service: Service, jobs: list[Job]) -> list[int]:
    """Indices of the jobs in the order in which they end."""
    for one in jobs:
        service._inbox.put(one)
    service._take_in()
    found: list[int] = []
    while service._jobs or service._waiting:
        service._feed()
        service._step()
        told: list[Any] = []
        service._collect(told)
        found += [jobs.index(one) for one, events in told if events[-1] is END]
    assert service.engine.pool.held == 0
    return found


def test_a_short_prompt_goes_ahead_of_a_queue_of_long_ones(service: Service) -> None:
    order = ends(service, [*(job(i, 220) for i in range(20)), job(20, 10)])
    assert order.index(20) < 5, order


def test_many_short_ones_take_their_place_only(service: Service) -> None:
    """Forty short ones and five long ones that fill the cache four at a time: the fifth does not come last."""
    order = ends(
        service, [*(job(i, 220, answer=12) for i in range(5)), *(job(5 + i, 10, answer=12) for i in range(40))]
    )
    assert order.index(4) < 25, order


def test_one_that_needs_the_whole_cache_is_not_overtaken(service: Service) -> None:
    service.engine.context = 1024
    jobs = [job(0, 220), job(1, 1000), *(job(2 + i, 10) for i in range(40))]
    ends(service, jobs)
    assert jobs[1].started < min(one.started for one in jobs[2:])


def test_priority_comes_before_arrival(service: Service) -> None:
    order = ends(service, [*(job(i, 220) for i in range(12)), job(12, 220, priority=5)])
    assert order.index(12) < 4
