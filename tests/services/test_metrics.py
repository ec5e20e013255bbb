"""What a scrape shows: exactly the series of the contract, a bounded number of them, and nothing moves by looking."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from orchestratord import __version__, contract
from orchestratord.domain.errors import PoolUnready
from orchestratord.domain.request import Caller, TaskRequest
from orchestratord.infra.budget import BUDGET, FREE
from orchestratord.infra.engines.mock import MockScript
from orchestratord.infra.heartbeat import PERIOD_S, Heartbeat
from orchestratord.infra.prometheus import TABLE, Metrics
from orchestratord.services.narration import Narrator
from orchestratord.testing.live import LiveApp, mock_pool, mock_settings
from orchestratord.testing.session import VerifyingSession
from tests.http.support import RawConnection, wait_for
from tests.services.support import submit, task

CI = Path(__file__).resolve().parents[2] / "ci"
LINT: dict[str, Any] = json.loads((CI / "metrics.lint.json").read_text("utf-8"))
LABELS: dict[str, int] = json.loads((CI / "metrics.labels.json").read_text("utf-8"))
OWN = ("process_", "python_", "orchestratord_event_loop_lag_ms")  # figures of the process, not of its work
UNSEEN = {  # what a mock engine without a GPU, on no demand, in good health cannot show
    "gpu_utilization",
    "vram_used_bytes",
    "orchestratord_replica_losses_total",
    "orchestratord_replica_restarts_total",
    "orchestratord_engine_faults_total",
    "orchestratord_model_loads_total",
    "orchestratord_model_unloads_total",
    "orchestratord_model_thrash_total",
    "orchestratord_model_resident",
    "orchestratord_model_load_ms",
    "orchestratord_breaker_trips_total",
    "orchestratord_transcripts_dropped_total",
    "orchestratord_model_cache_dropped_bytes_total",
    "orchestratord_pool_operation",
}


def families(text: str) -> dict[str, Any]:
    """What a scraper reads: by the name that samples have (a counter's ends in _total)."""
    found = {}
    for family in text_string_to_metric_families(text):
        found[f"{family.name}_total" if family.type == "counter" else family.name] = family
    return found


def workload(app: LiveApp, session: VerifyingSession) -> None:
    """Ends, a cancel, refusals of several kinds, a fault that is tried again, a drain, a catalog check."""
    for n in (1, 3):
        submit(session, max_tokens=n)
    app.advance(1)
    app.engine().play(MockScript(error_after=0))
    submit(session)
    app.advance(10)
    app.call(app.engine().hold)
    running = submit(session)
    app.settle()
    waiting = [submit(session, priority=priority) for priority in ("interactive", "batch")]
    for _ in range(3):
        session.post("/v1/tasks", json=task())
    session.post("/v1/tasks", json=task(engine="vllm"))
    session.post("/v1/tasks", json=task(placement={"mode": "pin", "pin_pool_id": "nowhere"}))
    session.post(f"/v1/tasks/{waiting[0]}/cancel")
    session.post(f"/v1/tasks/{running}/cancel")
    app.call(app.engine().release_hold)
    entry = {"id": "m", "source_url": "file:home.gguf", "tags": [], "digest": f"sha256:{'0' * 64}"}
    assert session.post("/v1/catalog/models", json=entry).status_code == 201
    assert session.post("/v1/catalog/models/m/verify").status_code == 202
    app.advance(5)
    assert session.post("/v1/pools/home/drain", json={"deadline_ms": 1000}).status_code == 202
    app.advance(2)


@pytest.fixture
def tight() -> LiveApp:
    pool = mock_pool(slots=1, capacity=2)
    pool["replicas"][0]["mock"]["token_ms"] = 10
    return LiveApp(mock_settings(pools=[pool]))


def test_a_scrape_after_a_workload_shows_the_contract_and_nothing_else(tight: LiveApp) -> None:
    """OC-METRICS-7101: names, types, labels and buckets, off the wire."""
    with tight as app, app.session() as session:
        workload(app, session)
        found = families(session.get("/metrics").text)
        ours = {name: f for name, f in found.items() if not name.startswith(("process_", "python_"))}
        assert ours.keys() == LINT.keys()
        for name, family in ours.items():
            declared = LINT[name]
            assert family.type == declared["type"], name
            assert family.documentation == TABLE[name].help
            for sample in family.samples:
                assert set(sample.labels) - {"le"} == set(declared["labels"]), sample
                assert sample.value >= 0, sample
            if "buckets" in declared and family.samples:
                bounds = {s.labels["le"] for s in family.samples if s.name.endswith("_bucket")}
                assert bounds == {str(float(b)) for b in declared["buckets"]} | {"+Inf"}, name
        assert {name for name, family in ours.items() if not family.samples} <= UNSEEN
        assert {name for name in found if name.startswith("process_")} >= {
            "process_cpu_seconds_total",
            "process_resident_memory_bytes",
            "process_open_fds",
            "process_start_time_seconds",
        }


def test_a_refused_placement_is_a_decision_too(tight: LiveApp) -> None:
    with tight as app, app.session() as session:
        workload(app, session)
        family = families(session.get("/metrics").text)["placement_decisions_total"]
        told = {(s.labels["outcome"], s.labels["pinned"]) for s in family.samples if s.name.endswith("_total")}
        assert told == {("placed", "false"), ("unready", "false"), ("infeasible", "true")}


def test_what_is_running_is_told(tight: LiveApp) -> None:
    with tight as app, app.session() as session:
        (sample,) = families(session.get("/metrics").text)["orchestratord_build_info"].samples
        assert sample.labels == {"version": __version__, "api_version": contract.api_version()}
        assert session.get("/v1/capabilities").json()["api_version"] == sample.labels["api_version"]


def test_tokens_per_second_are_of_what_the_engine_did() -> None:
    """20 ms a token are 50 tokens a second; before the first task there is no figure."""
    pool = mock_pool()
    pool["replicas"][0]["mock"]["token_ms"] = 20
    with LiveApp(mock_settings(pools=[pool])) as app, app.session() as session:
        name = "orchestratord_engine_tokens_per_s"
        assert families(session.get("/metrics").text)[name].samples == []
        submit(session, max_tokens=50)
        app.advance(5)
        (sample,) = families(session.get("/metrics").text)[name].samples
        assert sample.value == pytest.approx(50, rel=0.15)
        assert session.get("/v1/pools/home/health").json()["metrics"]["tokens_per_s"] == pytest.approx(sample.value)


# -- looking changes nothing -----------------------------------------------------------------------------------
def test_two_scrapes_in_a_row_are_equal_and_nothing_moved(tight: LiveApp) -> None:
    def theirs(text: str) -> list[str]:
        return [line for line in text.splitlines() if not line.removeprefix("# HELP ").startswith(OWN)]

    with tight as app, app.session() as session:
        workload(app, session)
        app.call(app.engine().hold)

        def state() -> Any:
            pools = [(p.id, len(p.queue), len(p.leases), p.ready, p.draining) for p in app.daemon.core.pools.values()]
            return pools + [(t.task_id, t.state, t.log.last_id) for t in app.daemon.core.tasks.values()]

        before = app.call(state)
        first, second = session.get("/metrics").text, session.get("/metrics").text
        assert theirs(first) == theirs(second)
        assert app.call(state) == before


# -- the number of series --------------------------------------------------------------------------------------
def test_the_budgets_are_data_and_every_label_has_one() -> None:
    assert BUDGET == LABELS
    assert {label for series in LINT.values() for label in series["labels"]} == LABELS.keys()
    required = {"engine": 4, "engine_version": 64, "pool_id": 256, "replica_id": 1024, "priority": 8, "reason": 16}
    required |= {"result": 4, "state": 8, "model_id": 1024, "outcome": 4, "pinned": 2, "fallback": 2}
    assert required.items() <= LABELS.items()


@pytest.mark.parametrize("name", [n for n, s in LINT.items() if s["labels"] and TABLE[n].kind != "state"])
def test_no_label_grows_beyond_its_budget(name: str) -> None:
    """A thousand values of one label, or as many as it may have and a hundred more: the rest is `other` (F6)."""
    for label in LINT[name]["labels"]:
        metrics = Metrics()
        budget = LABELS[label]
        for number in range(budget + 100):
            values = {each: f"v{number}" if each == label else "none" for each in LINT[name]["labels"]}
            metrics.count(name, 1, values) if TABLE[name].kind == "counter" else metrics.observe(name, 1, values)
        text = metrics.render().decode()
        seen = {s.labels[label] for f in text_string_to_metric_families(text) for s in f.samples if label in s.labels}
        assert seen == {f"v{n}" for n in range(budget)} | {"other"}
        mark = f'{label}="other"'
        counted = [
            float(line.split()[-1])
            for line in text.splitlines()
            if mark in line and line.startswith((f"{name}{{", f"{name}_count{{"))
        ]
        assert counted == [100]


def test_free_values_take_nobodys_place() -> None:
    metrics = Metrics()
    for value in (*FREE, "llamacpp", "vllm", "tgi", "triton", "onnx"):
        metrics.count("tasks_rejected_total", 1, {"engine": value, "reason": "reject"})
    text = metrics.render().decode()
    assert 'engine="triton"' in text
    assert "onnx" not in text


def test_state_gauges_keep_the_budget_too() -> None:
    """An engine that calls itself something else at every start."""
    metrics, now = Metrics(), "v0"
    metrics.watch(
        lambda: [("queue_depth", {"engine": "tgi", "engine_version": now, "pool_id": "p", "priority": "batch"}, 1)]
    )
    seen = set()
    for number in range(80):
        now = f"v{number}" * 100
        (sample,) = families(metrics.render().decode())["queue_depth"].samples
        seen.add(sample.labels["engine_version"])
    assert len(seen) == LABELS["engine_version"] + 1
    assert all(len(value) <= 128 for value in seen)


@pytest.mark.parametrize("name", [name for name, series in TABLE.items() if series.kind != "state"])
def test_a_family_tells_what_the_librarys_own_would(name: str) -> None:
    """Byte for byte, also on the bounds of a histogram and before anything was counted."""
    series, metrics, registry = TABLE[name], Metrics(), CollectorRegistry()
    kinds: dict[str, Any] = {
        "counter": Counter,
        "gauge": Gauge,
        "histogram": partial(Histogram, buckets=series.buckets),
    }
    theirs = kinds[series.kind](name, series.help, series.labels, registry=registry)

    def ours() -> list[str]:
        """Of this family, without the time at which the library made a series."""
        lines = (generate_latest(registry) + b"--\n" + metrics.render()).decode().split("--\n")
        mine = [line for line in lines[1].splitlines() if name.removesuffix("_total") in line]
        library = [line for line in lines[0].splitlines() if "_created" not in line]
        assert mine == library
        return mine

    before = ours()
    for number, value in enumerate((*series.buckets, 0.5, 0, 1e9, 7)):
        labels = dict.fromkeys(series.labels, f"v{number % 2}")
        metrics.observe(name, value, labels)
        child = theirs.labels(**labels) if labels else theirs
        getattr(child, {"counter": "inc", "gauge": "set", "histogram": "observe"}[series.kind])(value)
    assert ours() != before


def test_labels_that_are_not_the_familys_are_a_mistake() -> None:
    metrics = Metrics()
    with pytest.raises(KeyError):
        metrics.count("tasks_rejected_total", 1, {"engine": "tgi"})
    with pytest.raises(ValueError, match="pool_id"):
        metrics.count("tasks_rejected_total", 1, {"engine": "tgi", "reason": "x", "pool_id": "p"})


HOSTILE = 100_000


def counted(text: str, reason: str) -> float:
    family = families(text)["tasks_rejected_total"]
    return sum(s.value for s in family.samples if s.name.endswith("_total") and s.labels["reason"] == reason)


def test_a_hundred_thousand_names_of_clients_are_no_series(tight: LiveApp) -> None:
    """F6: distinct sessions, models, users, ids and correlation ids at the door that counts them; all of the daemon's
    series stay below 2,000. Over HTTP a smaller number, with methods and paths nobody serves."""
    with tight as app, app.session() as session:
        workload(app, session)
        first = session.get("/metrics").text
        core = app.daemon.core
        known: TaskRequest = app.call(lambda: next(iter(core.tasks.values())).request)

        class Quiet:  # the log has its own tests
            def event(self, *_: Any, **__: Any) -> None: ...

            count = staticmethod(app.daemon.telemetry.count)
            observe = staticmethod(app.daemon.telemetry.observe)

        narrator = Narrator(Quiet(), core.pools)

        def refuse() -> None:
            for number in range(HOSTILE):
                request = replace(known, task_id=f"t{number}", session_id=f"s{number}", model_ref=f"m{number}")
                narrator.rejected(request, PoolUnready("no"), Caller(f"c{number}", f"user{number}"))

        refuse()
        for number in range(100):
            session.post("/v1/tasks", json=task(model_ref=f"model-{number}", session_id=str(uuid.uuid4())))
            with RawConnection(app.url) as raw:
                raw.send(f"FOO{number} /v1/tasks/{number} HTTP/1.1\r\nHost: {raw.host}\r\n\r\n".encode())
                raw.answer()
            with RawConnection(app.url) as raw:
                raw.get(f"/nowhere/{number}", User_Agent=f"agent-{number}")
                assert raw.answer().status == 404
        after = session.get("/metrics").text
        samples = [line for line in after.splitlines() if not line.startswith("#")]
        assert after.count("\n") <= first.count("\n") + 4
        assert len(samples) <= 2000
        assert counted(after, "pool_unready") == counted(first, "pool_unready") + HOSTILE + 100


# -- the event loop --------------------------------------------------------------------------------------------
class FakeLoop:
    """Calls what was asked for when told to."""

    def __init__(self) -> None:
        self.asked: list[tuple[float, Callable[[], None]]] = []

    def call_later(self, delay: float, fn: Callable[[], None]) -> Any:
        self.asked.append((delay, fn))
        return self

    def cancel(self) -> None:
        self.asked.clear()


def test_the_heartbeat_tells_by_how_much_the_loop_was_late() -> None:
    time, late, loop = [100.0], list[float](), FakeLoop()
    heart = Heartbeat(late.append, lambda: time[0])
    heart.start(loop)  # type: ignore[arg-type]
    for delay in (PERIOD_S, PERIOD_S + 0.5, PERIOD_S - 0.001):
        asked, beat = loop.asked.pop()
        assert asked == PERIOD_S
        time[0] += delay
        beat()
    assert late == pytest.approx([0, 500, 0], abs=1e-6)
    heart.stop()
    assert loop.asked == []


def test_the_lag_of_a_real_loop_is_scraped() -> None:
    """A beat is seen; no figure is claimed of it."""
    with LiveApp(manual=False) as app, app.session() as session:

        def beats() -> bool:
            text = session.get("/metrics").text
            return "orchestratord_event_loop_lag_ms_count 0.0" not in text and "event_loop_lag_ms_count" in text

        wait_for(beats, "the heartbeat")
