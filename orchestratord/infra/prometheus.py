"""Metrics: the table of every series, and a registry that fills it. Gauges of state are read at scrape time."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from orchestratord.infra.budget import LabelBudget

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"


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
    "orchestratord_pool_operations_total": Series(
        "counter", ("pool_id", "kind", "outcome"), "Drains, reloads and resumes that are over."
    ),
    "orchestratord_pool_operation": Series("state", ("pool_id", "kind", "state"), "1 for the operation that runs."),
    "orchestratord_breaker_trips_total": Series("counter", ("pool_id",), "Replicas that failed too often in a row."),
    "orchestratord_engine_tokens_per_s": Series("state", _POOL, "Output per second of one slot, as observed."),
    "orchestratord_event_loop_lag_ms": Series(
        "histogram",
        (),
        "How late the event loop wakes a timer.",
        (1, 5, 10, 25, 50, 100, 250, 500, 1000, 5000),
    ),
    "orchestratord_build_info": Series("state", ("version", "api_version"), "1; what is running."),
}

Sample = tuple[str, dict[str, str], float]  # (series, labels, value) of a `state` gauge


class StateCollector(Collector):
    """Reads the state gauges when asked: scraping changes nothing, and a gauge cannot drift from the truth."""

    def __init__(self, read: Callable[[], Iterable[Sample]], budget: LabelBudget) -> None:
        self._read = read
        self._budget = budget

    def collect(self) -> Iterator[Metric]:
        families = {
            name: GaugeMetricFamily(name, series.help, labels=series.labels)
            for name, series in TABLE.items()
            if series.kind == "state"
        }
        for name, labels, value in self._read():
            names = TABLE[name].labels
            families[name].add_metric(self._budget.fit(name, names, [labels[label] for label in names]), value)
        yield from families.values()


class Sum:
    """The series of a counter."""

    __slots__ = ("value",)

    def __init__(self, _: Series) -> None:
        self.value = 0.0

    def take(self, amount: float) -> None:
        self.value += amount


class Last(Sum):
    """The series of a gauge."""

    __slots__ = ()

    def take(self, amount: float) -> None:
        self.value = amount


class Spread:
    """The series of a histogram. `counts`: one for each bound, and one for what is beyond them all."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, series: Series) -> None:
        self.bounds = series.buckets
        self.counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0

    def take(self, amount: float) -> None:
        self.counts[bisect_left(self.bounds, amount)] += 1
        self.total += amount

    @property
    def buckets(self) -> list[tuple[str, float]]:
        """As the library wants them: bounds as text, and how many were not beyond each."""
        names = [*(str(float(bound)) for bound in self.bounds), "+Inf"]
        return list(zip(names, accumulate(self.counts), strict=True))


_KINDS: dict[str, type[Sum | Spread]] = {"counter": Sum, "gauge": Last, "histogram": Spread}


class Family(Collector):
    """One family that is counted into, and its series by the values of their labels.

    The figures are plain attributes that are read at a scrape: the library's own take a lock and ten times the steps
    for each, and a task brings ten. Counted on the loop's thread only.
    """

    def __init__(self, name: str, series: Series, budget: LabelBudget) -> None:
        self._name = name
        self._series = series
        self._labels = series.labels
        self._budget = budget
        self._known: dict[tuple[str, ...], Sum | Spread] = {}  # only of values that are within the budget
        self._all: dict[tuple[str, ...], Sum | Spread] = {}
        if not self._labels:
            self.child({})

    def child(self, labels: dict[str, str]) -> Sum | Spread:
        """The series of these labels. Raises KeyError or ValueError when they are not the family's."""
        key = tuple([labels[name] for name in self._labels])
        found = self._known.get(key)
        return found if found is not None else self._new(key, labels)

    def _new(self, key: tuple[str, ...], labels: dict[str, str]) -> Sum | Spread:
        if len(labels) != len(key):
            raise ValueError(f"{self._name} has the labels {self._labels}, not {tuple(labels)}")
        fitting = tuple(self._budget.fit(self._name, self._labels, key))
        child = self._all.get(fitting)
        if child is None:
            child = self._all[fitting] = _KINDS[self._series.kind](self._series)
        if fitting == key:
            self._known[key] = child
        return child

    def collect(self) -> Iterator[Metric]:
        kind, about = self._series.kind, (self._name, self._series.help)
        if kind == "histogram":
            spreads = HistogramMetricFamily(*about, labels=self._labels)
            for values, each in self._all.items():
                assert isinstance(each, Spread)
                spreads.add_metric(values, each.buckets, each.total)
            yield spreads
            return
        sums = (CounterMetricFamily if kind == "counter" else GaugeMetricFamily)(*about, labels=self._labels)
        for values, each in self._all.items():
            assert isinstance(each, Sum)
            sums.add_metric(values, each.value)
        yield sums


class Metrics:
    """The registry of one daemon."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._budget = LabelBudget()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        self.families = {
            name: Family(name, series, self._budget) for name, series in TABLE.items() if series.kind != "state"
        }
        for family in self.families.values():
            self._registry.register(family)

    def watch(self, read: Callable[[], Iterable[Sample]]) -> None:
        """Give the state gauges their source."""
        self._registry.register(StateCollector(read, self._budget))

    def count(self, series: str, amount: float, labels: dict[str, str]) -> None:
        self.families[series].child(labels).take(amount)

    observe = count  # what is taken is added, set or sorted in, as the family is

    def meter(self, series: str, labels: dict[str, str]) -> Callable[[float], None]:
        """What adds to a counter or a histogram, or sets a gauge."""
        return self.families[series].child(labels).take

    def render(self) -> bytes:
        """The Prometheus text format."""
        return generate_latest(self._registry)
