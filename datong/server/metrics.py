"""Prometheus metrics. Names start with `datong_`; docs/howto and the Grafana dashboard use them.

https://prometheus.io/docs/practices/naming/
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from datong.engine.scheduler import Scheduler
from datong.server.hosts import Host, Hosts
from datong.server.job import Job

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
FIRST = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)  # seconds to the first token
BETWEEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)  # seconds per further token
BATCH = (1, 2, 4, 8, 16, 32, 64, 128)  # sequences of one step


class Metrics:
    """One registry per server, so that tests and embedders do not share counters."""

    def __init__(self, hosts: Hosts) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Engines(hosts))
        self._http = Counter("datong_http_requests", "Requests", ["route", "code"], registry=self._registry)
        registry, by = self._registry, ["model"]
        self._prompt = Counter("datong_prompt_tokens", "Tokens of prompts", by, registry=registry)
        self._cached = Counter("datong_cached_prompt_tokens", "… found in the cache", by, registry=registry)
        self._tokens = Counter("datong_generated_tokens", "Tokens of answers", by, registry=registry)
        self._guessed = Counter("datong_guessed_tokens", "Tokens that speculation offered", by, registry=registry)
        self._accepted = Counter("datong_accepted_tokens", "… of those, the right ones", by, registry=registry)
        self._ended = Counter(
            "datong_answers", "Answers by how they ended", ["model", "finish"], registry=self._registry
        )
        self._queue = Histogram(
            "datong_queue_seconds", "From arrival to the engine", ["model"], buckets=FIRST, registry=self._registry
        )
        self._first = Histogram(
            "datong_time_to_first_token_seconds", "Of answers", ["model"], buckets=FIRST, registry=self._registry
        )
        self._between = Histogram(
            "datong_time_per_output_token_seconds",
            "Mean of each answer after its first token",
            ["model"],
            buckets=BETWEEN,
            registry=self._registry,
        )

        for name in hosts.names:  # from 0 on, so that rates see the first answer
            for family in (
                *(self._prompt, self._cached, self._tokens, self._guessed, self._accepted),
                *(self._queue, self._first, self._between),
            ):
                family.labels(name)

    def http(self, route: str, code: int) -> None:
        """An answered HTTP request."""
        self._http.labels(route, str(code)).inc()

    def job(self, model: str, job: Job) -> None:
        """A job that ended, in whatever way."""
        if job.started:
            self._queue.labels(model).observe(job.started - job.born)
        for request in job.requests:
            result, timings = request.result, request.result.timings
            self._ended.labels(model, result.finish_reason or "cancelled").inc()
            if not result.tokens:
                continue
            self._prompt.labels(model).inc(result.prompt_tokens)
            self._cached.labels(model).inc(result.cached_tokens)
            self._tokens.labels(model).inc(len(result.tokens))
            self._guessed.labels(model).inc(timings.guessed_tokens)
            self._accepted.labels(model).inc(timings.accepted_tokens)
            self._first.labels(model).observe(timings.time_to_first_token)
            if timings.decode_tokens:
                self._between.labels(model).observe(timings.decode_seconds / timings.decode_tokens)

    def text(self) -> bytes:
        """What `/metrics` answers."""
        return generate_latest(self._registry)


class _Engines(Collector):
    """Gauges that are read when somebody asks; numbers of another thread, each one whole by itself."""

    def __init__(self, hosts: Hosts) -> None:
        self._hosts = hosts

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily | HistogramMetricFamily]:
        """All models."""
        hosts = self._hosts.all()
        yield _gauge("datong_requests_running", "Sequences in the batch", hosts, lambda h: len(_scheduler(h).running))
        yield _gauge("datong_requests_waiting", "Jobs and sequences that wait", hosts, lambda h: h.service.waiting)
        yield _gauge("datong_requests_live", "Answers that were not sent whole", hosts, lambda h: h.service.live)
        yield _gauge("datong_cache_blocks", "Blocks of the cache", hosts, lambda h: h.model.engine.pool.blocks)
        yield _gauge("datong_cache_blocks_held", "… that sequences hold", hosts, lambda h: h.model.engine.pool.held)
        yield _gauge("datong_cache_block_tokens", "Tokens per block", hosts, lambda h: h.model.engine.pool.block_size)
        preempted = CounterMetricFamily("datong_preemptions", "Sequences sent back for want of cache", labels=["model"])
        placed = GaugeMetricFamily("datong_placement_nodes", "Nodes by where they run", labels=["model", "backend"])
        sizes = HistogramMetricFamily("datong_batch_size", "Sequences of each step", labels=["model"])
        for host in hosts:
            sizes.add_metric([host.name], *_histogram(host.service.batches))
            preempted.add_metric([host.name], _scheduler(host).preemptions)
            for backend, count in Tally(backend for backend, _ in host.model.placement()).items():
                placed.add_metric([host.name, backend], count)
        yield preempted
        yield placed
        yield sizes


def _histogram(steps: Sequence[int]) -> tuple[list[tuple[str, float]], float]:
    """`steps[n]`: how many had n sequences -> buckets as Prometheus has them, and the sum."""
    found = list(steps)
    buckets = [(str(float(most)), float(sum(found[: most + 1]))) for most in BATCH]
    return [*buckets, ("+Inf", float(sum(found)))], float(sum(n * count for n, count in enumerate(found)))


def _scheduler(host: Host) -> Scheduler:
    return host.model.engine.scheduler


def _gauge(name: str, text: str, hosts: Iterable[Host], value: Callable[[Host], float]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=["model"])
    for host in hosts:
        family.add_metric([host.name], value(host))
    return family
