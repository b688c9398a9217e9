"""What is counted, in Prometheus' words (https://prometheus.io/docs/practices/naming/).

With several workers the counts of all are added up: then `PROMETHEUS_MULTIPROC_DIR` names a folder
that they share, which gunicorn.conf.py makes.
"""

import os
from typing import Any, TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
    values,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.multiprocess import MultiProcessCollector

disable_created_metrics()  # type: ignore[no-untyped-call] # a series for each series, which nobody reads

CONTENT_TYPE = CONTENT_TYPE_LATEST
Labelled = TypeVar("Labelled", Counter, Histogram)
_LATENCIES = (0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 150, 300)


class Metrics:
    """The counters of one application."""

    def __init__(self) -> None:
        # Chosen by the environment as it is now; by itself it would be as it was at the import.
        values.ValueClass = values.get_value_class()  # type: ignore[no-untyped-call]
        self._registry = own = CollectorRegistry()
        self._children: dict[tuple[object, tuple[str, ...]], Any] = {}
        self._requests = Counter(
            "tts_requests_total",
            "Requests by status and by where the answer came from.",
            ["status", "cache"],
            registry=own,
        )
        self._first_byte = Histogram(
            "tts_first_byte_seconds",
            "From a speech request to the first byte of its answer.",
            ["cache"],
            buckets=_LATENCIES,
            registry=own,
        )
        self._total = Histogram(
            "tts_request_seconds",
            "From a speech request to the last byte of its answer.",
            ["cache"],
            buckets=_LATENCIES,
            registry=own,
        )
        self._queue = self._gauge("tts_queue_segments", "Segments that wait for their turn.")
        self._pending = self._gauge("tts_pending_requests", "Requests that wait for synthesis.")
        self._queue_wait = Histogram(
            "tts_queue_wait_seconds",
            "How long a segment waited for its turn.",
            buckets=_LATENCIES,
            registry=own,
        )
        self._calls = self._counter("tts_backend_calls_total", "Calls of a backend.", "backend")
        self._failures = self._counter(
            "tts_backend_failures_total", "Calls of a backend that failed.", "backend"
        )
        self._ready = Gauge(
            "tts_backend_ready",
            "Whether a backend is in use, by worker.",
            ["backend"],
            multiprocess_mode="liveall",
            registry=own,
        )
        self._sound = self._counter(
            "tts_sound_seconds_total", "Seconds of sound that went into answers.", "source"
        )
        self._cache_bytes = self._gauge("tts_cache_bytes", "Bytes in the processes' caches.")
        self._cache_entries = self._gauge("tts_cache_entries", "Entries in the same.")
        self._evictions = Counter(
            "tts_cache_evictions_total", "Entries that made room for others.", registry=own
        )
        self._joined = Counter(
            "tts_flights_joined_total",
            "Times that a synthesis under way was joined instead of begun again.",
            registry=own,
        )

        self._redis = Gauge(
            "tts_redis_up",
            "Whether Redis is in use, by worker.",
            multiprocess_mode="liveall",
            registry=own,
        )
        self._redis_faults = Counter(
            "tts_redis_faults_total", "Times that Redis failed, refused or was slow.", registry=own
        )

    def note_request(self, status: str, cache: str | None) -> None:
        """A request was answered; `cache` is its X-Cache, if it was for speech."""
        self._child(self._requests, status, cache or "").inc()

    def note_latency(self, cache: str, first_byte: float, total: float) -> None:
        """An answer to a speech request is out; seconds since the request came."""
        self._child(self._first_byte, cache).observe(first_byte)
        self._child(self._total, cache).observe(total)

    def note_load(self, segments: int, requests: int) -> None:
        self._queue.set(segments)
        self._pending.set(requests)

    def note_queue_wait(self, seconds: float) -> None:
        self._queue_wait.observe(seconds)

    def note_call(self, backend: str, *, failed: bool) -> None:
        self._calls.labels(backend).inc()
        if failed:
            self._failures.labels(backend).inc()

    def note_backend(self, backend: str, *, is_ready: bool) -> None:
        self._ready.labels(backend).set(is_ready)

    def note_sound(self, source: str, seconds: float) -> None:
        """Sound went into an answer, from the `cache` or from a `backend`."""
        self._child(self._sound, source).inc(seconds)

    def note_cache(self, entries: int, size: int) -> None:
        self._cache_entries.set(entries)
        self._cache_bytes.set(size)

    def note_eviction(self) -> None:
        self._evictions.inc()

    def note_joined(self) -> None:
        self._joined.inc()

    def note_redis(self, *, is_up: bool) -> None:
        self._redis.set(is_up)

    def note_redis_fault(self) -> None:
        self._redis_faults.inc()

    def exposition(self) -> bytes:
        """Everything, of all workers, in Prometheus' text format."""
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            return generate_latest(self._registry)
        everybody = CollectorRegistry()
        MultiProcessCollector(everybody)  # type: ignore[no-untyped-call]
        return generate_latest(everybody)

    def _child(self, metric: Labelled, *labels: str) -> Labelled:
        """The metric for some labels, remembered: prometheus_client takes 2 µs to find it."""
        child = self._children.get((metric, labels))
        if child is None:
            child = self._children[metric, labels] = metric.labels(*labels)
        return child

    def _counter(self, name: str, told: str, label: str) -> Counter:
        return Counter(name, told, [label], registry=self._registry)

    def _gauge(self, name: str, told: str) -> Gauge:
        return Gauge(name, told, multiprocess_mode="livesum", registry=self._registry)
