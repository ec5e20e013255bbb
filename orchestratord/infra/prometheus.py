"""Metrics: the table of every series, and a registry that fills it. Gauges of state are read at scrape time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"

disable_created_metrics()  # type: ignore[no-untyped-call]


@dataclass(frozen=True, slots=True)
class Series:
    """One family: `state` gauges are read from the core when somebody scrapes."""

    kind: Literal["counter", "gauge", "histogram", "state"]
    labels: tuple[str, ...]
    help: str
    buckets: tuple[float, ...] = ()


_POOL = ("engine", "engine_version", "pool_id")
_REPLICA = (*_POOL, "replica_id")

TABLE: dict[str, Series] = {
    "tasks_enqueued_total": Series("counter", (*_REPLICA, "priority"), "Tasks admitted."),
    "tasks_started_total": Series("counter", (*_REPLICA, "priority"), "Tasks that got their first lease."),
    "tasks_canceled_total": Series("counter", (*_REPLICA, "reason"), "Tasks ended early, by what ended them."),
    "tasks_rejected_total": Series("counter", ("engine", "reason"), "Tasks refused at admission."),
    "queue_depth": Series("state", (*_POOL, "priority"), "Tasks waiting."),
    "kv_cache_usage_ratio": Series("state", _REPLICA, "Share of the KV cache that running jobs take."),
    "gpu_utilization": Series("state", (*_REPLICA, "device"), "Share of time the device computes."),
    "vram_used_bytes": Series("state", (*_REPLICA, "device"), "Memory in use on the device, by whoever."),
    "latency_first_token_ms": Series(
        "histogram",
        (*_POOL, "priority"),
        "Receipt to first token.",
        (50, 100, 150, 200, 300, 500, 750, 1000, 1500, 2000, 3000),
    ),
    "latency_decode_ms": Series(
        "histogram",
        (*_POOL, "priority"),
        "First token to the end.",
        (250, 500, 1000, 1500, 2000, 3000, 4000, 6000, 8000, 12000),
    ),
    "tokens_in_total": Series("counter", _REPLICA, "Prompt tokens, by the engine's count."),
    "tokens_out_total": Series("counter", _REPLICA, "Output tokens, by the engine's count."),
    "admission_backpressure_events_total": Series("counter", ("engine", "policy"), "Refusals for lack of room."),
    "placement_decisions_total": Series("counter", ("outcome", "pinned", "fallback"), "Placement decisions."),
    "placement_candidates_considered": Series("gauge", (), "Pools considered by the last placement."),
    "active_leases": Series("state", ("pool_id",), "Slots held by tasks."),
    "pool_ready": Series("state", ("pool_id",), "1 while a pool takes work."),
    "drain_events_total": Series("counter", ("pool_id", "reason"), "Times a pool stopped taking work."),
    "catalog_verifications_total": Series(
        "counter", ("result", "reason", "engine"), "Checks of catalog models that came to their end."
    ),
    "model_state": Series("state", ("model_id", "state"), "1 for the state a catalog model is in."),
    "orchestratord_tasks_ended_total": Series(
        "counter", ("engine", "pool_id", "phase", "outcome", "code"), "Tasks that reached their terminal event."
    ),
    "orchestratord_preloads_total": Series("counter", ("pool_id", "outcome"), "Attempts to make a replica ready."),
    "orchestratord_replica_losses_total": Series("counter", ("pool_id",), "Ready replicas that were lost."),
    "orchestratord_replica_restarts_total": Series("counter", ("pool_id",), "Engines started anew after a failure."),
    "orchestratord_engine_faults_total": Series("counter", ("pool_id", "code"), "Failures of engines we run, by kind."),
    "orchestratord_task_retries_total": Series("counter", ("pool_id",), "Tasks tried again before any output."),
    "orchestratord_model_loads_total": Series("counter", ("pool_id", "outcome"), "Loads of on-demand models."),
    "orchestratord_model_unloads_total": Series("counter", ("pool_id", "reason"), "Unloads of on-demand models."),
    "orchestratord_model_thrash_total": Series("counter", ("pool_id",), "Models back within a minute of making room."),
    "orchestratord_model_resident": Series("state", ("pool_id",), "1 while an on-demand model is in memory."),
    "orchestratord_model_load_ms": Series(
        "histogram",
        ("pool_id",),
        "What loading an on-demand model took.",
        (250, 500, 1000, 2500, 5000, 10_000, 20_000, 40_000, 80_000, 160_000),
    ),
    "orchestratord_artifact_bytes": Series("state", ("origin",), "What the store of artifacts holds."),
    "orchestratord_transcripts_dropped_total": Series("counter", ("reason",), "Transcripts past their retention."),
    "orchestratord_model_cache_dropped_bytes_total": Series("counter", (), "Fetched models that made room."),
    "orchestratord_breaker_trips_total": Series("counter", ("pool_id",), "Replicas that failed too often in a row."),
}

Sample = tuple[str, dict[str, str], float]  # (series, labels, value) of a `state` gauge


class StateCollector(Collector):
    """Reads the state gauges when asked: scraping changes nothing, and a gauge cannot drift from the truth."""

    def __init__(self, read: Callable[[], Iterable[Sample]]) -> None:
        self._read = read

    def collect(self) -> Iterator[Metric]:
        families = {
            name: GaugeMetricFamily(name, series.help, labels=series.labels)
            for name, series in TABLE.items()
            if series.kind == "state"
        }
        for name, labels, value in self._read():
            family = families[name]
            family.add_metric([labels[label] for label in TABLE[name].labels], value)
        yield from families.values()


class Metrics:
    """The registry of one daemon."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        self._counters: dict[str, Counter] = {}
        self._gauges: dict[str, Gauge] = {}
        self._histograms: dict[str, Histogram] = {}
        for name, series in TABLE.items():
            if series.kind == "counter":
                self._counters[name] = Counter(name, series.help, series.labels, registry=self._registry)
            elif series.kind == "gauge":
                self._gauges[name] = Gauge(name, series.help, series.labels, registry=self._registry)
            elif series.kind == "histogram":
                self._histograms[name] = Histogram(
                    name, series.help, series.labels, buckets=series.buckets, registry=self._registry
                )

    def watch(self, read: Callable[[], Iterable[Sample]]) -> None:
        """Give the state gauges their source."""
        self._registry.register(StateCollector(read))

    def count(self, series: str, amount: float, labels: dict[str, str]) -> None:
        counter = self._counters[series]
        (counter.labels(**labels) if labels else counter).inc(amount)

    def observe(self, series: str, value: float, labels: dict[str, str]) -> None:
        if series in self._gauges:
            gauge = self._gauges[series]
            (gauge.labels(**labels) if labels else gauge).set(value)
        else:
            histogram = self._histograms[series]
            (histogram.labels(**labels) if labels else histogram).observe(value)

    def render(self) -> bytes:
        """The Prometheus text format."""
        return generate_latest(self._registry)
