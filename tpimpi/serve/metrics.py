"""What /metrics tells Prometheus: requests as HTTP has them, figures of engine and ranks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from tpimpi.serve.served import Service

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_FIRST = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 150, 300, 600)  # seconds
_TOKEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_REQUEST = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 150, 300, 600, 1800)

# Of a snapshot: its field, the metric's name and what it says.
_GAUGES = (
    ("running", "tpimpi_requests_running", "Texts that are being made"),
    ("waiting", "tpimpi_requests_waiting", "Texts that wait for their turn"),
    ("max_batch", "tpimpi_batch_max", "Texts that can be made at once"),
    ("pages", "tpimpi_kv_pages", "Pages for keys and values"),
    ("pages_used", "tpimpi_kv_pages_used", "Pages that running texts hold"),
    ("pages_cached", "tpimpi_kv_pages_cached", "Pages kept in case a prompt begins the same way"),
)
_COUNTERS = (
    ("passes", "tpimpi_passes", "Passes over the weights"),
    ("prompt_tokens", "tpimpi_prompt_tokens", "Tokens of prompts"),
    ("cached_tokens", "tpimpi_cached_tokens", "Tokens of prompts that were not computed again"),
    ("generated_tokens", "tpimpi_generated_tokens", "Tokens that were made"),
)
_RANK_COUNTERS = (
    ("compute_seconds", "tpimpi_rank_compute_seconds", "Time that a rank computed"),
    ("disk_wait_seconds", "tpimpi_rank_disk_wait_seconds", "Time that a rank waited for its disk"),
    ("network_seconds", "tpimpi_rank_allreduce_seconds", "Time that a rank spent in sums"),
    ("late_seconds", "tpimpi_rank_late_seconds", "... of it: waiting for ranks that came later"),
    ("idle_seconds", "tpimpi_rank_idle_seconds", "Time that a rank had nothing to do"),
    ("bytes_read", "tpimpi_rank_read_bytes", "Bytes of weights read from disk"),
)
_RANK_GAUGES = (
    ("peak_memory_bytes", "tpimpi_rank_memory_peak_bytes", "The most memory that a rank took"),
    ("budget_bytes", "tpimpi_rank_memory_budget_bytes", "The memory that a rank may take"),
)


class Metrics:
    """A registry of its own, so that several servers in one process don't meet in it."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        more = {"registry": self._registry}
        self._requests = Counter(
            "tpimpi_http_requests", "Requests by path and status", ("path", "status"), **more
        )
        self._seconds = Histogram(
            "tpimpi_http_request_seconds", "Time from a request to the end of its answer",
            ("path",), buckets=_REQUEST, **more,
        )  # fmt: skip
        self._first = Histogram(
            "tpimpi_first_token_seconds", "Time from a request to its first token",
            buckets=_FIRST, **more,
        )  # fmt: skip
        self._token = Histogram(
            "tpimpi_token_seconds", "Time from a token to the next", buckets=_TOKEN, **more
        )

    def serve(self, service: Service) -> None:
        """Tell of this engine, too, from now on."""
        self._registry.register(_Engine(service))

    def came(self, seconds: float, tokens: int, first: bool) -> None:
        """Count tokens that came after so many seconds."""
        if first:
            self._first.observe(seconds)
            tokens -= 1
        for _ in range(tokens):
            self._token.observe(0.0 if first else seconds / tokens)

    def answered(self, path: str, status: int, seconds: float) -> None:
        """Count a request."""
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def text(self) -> bytes:
        """Return all figures as Prometheus reads them."""
        return generate_latest(self._registry)


class _Engine:
    """Collect the engine's figures when they are asked for."""

    def __init__(self, service: Service):
        self._service = service

    def describe(self) -> list:
        """Return nothing: so no figures are collected at the registration."""
        return []

    def collect(self) -> Iterator[Any]:
        """Yield the figures of one snapshot."""
        found = self._service.snapshot()
        for kinds, family in ((_GAUGES, GaugeMetricFamily), (_COUNTERS, CounterMetricFamily)):
            for name, metric, text in kinds:
                yield family(metric, text, value=getattr(found, name))
        for kinds, family in (
            (_RANK_GAUGES, GaugeMetricFamily), (_RANK_COUNTERS, CounterMetricFamily)
        ):  # fmt: skip
            for name, metric, text in kinds:
                series = family(metric, text, labels=("rank", "host"))
                for rank in found.ranks:
                    value = getattr(rank, name)
                    if value is not None:
                        series.add_metric((str(rank.rank), rank.host), value)
                yield series
