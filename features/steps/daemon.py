"""The daemon itself: how it is started and stopped, its health, metrics, log, documents and limits."""

from __future__ import annotations

import contextlib
import io
import os
import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch
from urllib.parse import urlsplit

import yaml
from behave import given, step, then, when

from features.vocabulary import equal
from features.wishes import PROMPT
from orchestratord import cli, contract


@given("a daemon that keeps its journal on disk")
def daemon_persists(context: Any) -> None:
    context.world.plan.persist()


@given("finished logs are kept on disk only")
def logs_on_disk(context: Any) -> None:
    context.world.plan.section("retention", {"log_bytes": 0})


@step('the log of "{task:Text}" has left memory')
def log_has_left(context: Any, task: str) -> None:
    world = context.world
    roster = world.app.daemon.core.tasks
    world.settle(11)
    world.until(lambda: roster[world.tasks[task].id].log.evicted, f"the log of {task} is evicted")


@step("the disk of the journal is full")
def disk_is_full(context: Any) -> None:
    context.world.plan.disk.full = True


@step("the disk of the journal has room again")
def disk_has_room(context: Any) -> None:
    world = context.world
    world.plan.disk.full = False
    world.until(lambda: world.app.daemon.journal.healthy, "the journal writes again")


@step("the journal breaks")
def journal_breaks(context: Any) -> None:
    world = context.world
    world.app.call(lambda: setattr(world.app.daemon.journal, "broken", "input/output error"))


@step("the daemon restarts")
def daemon_restarts(context: Any) -> None:
    context.world.restart()


@given("no pool is configured")
def no_pools(context: Any) -> None:
    context.world.plan.bare = True


@given("every operation has a bug")
def everything_has_a_bug(context: Any) -> None:
    context.world.plan.buggy = True


@given("bodies may have {size:d} bytes at most")
def bodies_are_limited(context: Any, size: int) -> None:
    context.world.plan.section("server", {"max_body_bytes": size})


@given("one caller may submit {rate:d} task a second and {burst:d} at once")
def callers_are_limited(context: Any, rate: int, burst: int) -> None:
    context.world.plan.section("auth", {"rate_limit": {"per_s": rate, "burst": burst}})


@given("the daemon takes {count:d} connection at a time")
def connections_are_limited(context: Any, count: int) -> None:
    context.world.plan.limit_server("connections_max", count)


@given("a request head may take {milliseconds:d} ms to arrive")
def heads_are_limited(context: Any, milliseconds: int) -> None:
    context.world.plan.limit_server("HEAD_S", milliseconds / 1000)


@given("streams of waiting tasks tell their state every {duration:Duration}")
def queued_cadence(context: Any, duration: float) -> None:
    context.world.plan.section("streams", {"metrics_queued_ms": round(duration * 1000)})


@when("the command line starts it on {host} without a token")
def daemon_is_started_on(context: Any, host: str) -> None:
    complaint = io.StringIO()
    environ = {key: value for key, value in os.environ.items() if key != "AUTH_TOKEN"}
    with TemporaryDirectory() as directory, patch.dict(os.environ, environ, clear=True):
        config = Path(directory) / "orchestratord.yaml"
        config.write_text(yaml.safe_dump({"server": {"host": host}, "data_dir": directory}), "utf-8")
        with contextlib.redirect_stderr(complaint):
            code = cli.main(["serve", "--config", str(config)])
    context.world.refusal = f"{code}: {complaint.getvalue()}"


@then('it does not start and says "{text}"')
def does_not_start(context: Any, text: str) -> None:
    code, _, complaint = context.world.refusal.partition(": ")
    assert code != "0", "it started, and ended well"
    assert text in complaint, f"it says {complaint!r}"


# -- health and figures ----------------------------------------------------------------------------------------
@when("a probe asks whether it lives")
def probe_asks_for_life(context: Any) -> None:
    context.world.send("GET", "/healthz")


@when("a probe asks whether it is ready")
def probe_asks_for_readiness(context: Any) -> None:
    context.world.send("GET", "/readyz")


@then("it lives")
def it_lives(context: Any) -> None:
    equal((context.world.answer.status_code, context.world.answer.json()), (200, {"status": "ok"}), "the answer")


@then("it is ready")
def it_is_ready(context: Any) -> None:
    found = (context.world.answer.status_code, context.world.answer.json())
    equal(found, (200, {"ready": True, "reasons": []}), "the answer")


@then('it is not ready: "{reason:Text}"')
def it_is_not_ready(context: Any, reason: str) -> None:
    found = (context.world.answer.status_code, context.world.answer.json())
    equal(found, (503, {"ready": False, "reasons": [reason]}), "the answer")


@then('it is not ready, because of pool "{pool:Text}" alone')
def it_is_not_ready_because_of(context: Any, pool: str) -> None:
    equal(context.world.answer.status_code, 503, "the status")
    (reason,) = context.world.answer.json()["reasons"]
    assert reason.startswith(f"pool {pool} is not ready"), reason


@when("Prometheus scrapes")
def prometheus_scrapes(context: Any) -> None:
    context.world.send("GET", "/metrics")


@then("the figures are")
def figures_are(context: Any) -> None:
    found, expected = {}, {}
    for row in context.table:
        labels = dict(pair.split("=") for pair in row["labels"].split(", ") if pair)
        key = f"{row['series']} {row['labels']}"
        value = context.world.metric(row["series"], labels)
        found[key], expected[key] = "none" if value is None else f"{value:g}", row["value"]
    equal(found, expected, "the figures")


@then("the figures of tasks add up")
def figures_add_up(context: Any) -> None:
    world = context.world
    ended = {
        phase: world.metric("orchestratord_tasks_ended_total", {"phase": phase}) or 0 for phase in ("queued", "running")
    }
    enqueued, started = world.metric("tasks_enqueued_total", {}), world.metric("tasks_started_total", {})
    waiting, running = world.metric("queue_depth", {}), world.metric("active_leases", {})
    assert enqueued, "no task was counted"
    equal(enqueued, ended["queued"] + started + waiting, "ended while queued, started and waiting")
    equal(started, ended["running"] + running, "ended while running and running")


@then("no label has the text of a client")
def labels_are_ours(context: Any) -> None:
    text = context.world.http.get("/metrics").text
    for sent in context.world.tasks.values():
        for field in ("task_id", "session_id", "prompt", "model_ref"):
            ours = sent.body[field] == sent.body["model_ref"] == "home"  # the pool's own name
            assert ours or f'"{sent.body[field]}"' not in text, f"{field} {sent.body[field]!r} is a label"


@then("the answer has a figure of {series:Word}")
def answer_has_series(context: Any, series: str) -> None:
    assert context.world.answer.headers["Content-Type"].startswith("text/plain; version=0.0.4"), "another format"
    assert f"\n{series}" in context.world.answer.text, f"no sample of {series}"


# -- log -------------------------------------------------------------------------------------------------------
def _log(context: Any) -> list[dict[str, Any]]:
    return [yaml.safe_load(line) for line in context.world.app.log.getvalue().splitlines()]


@then("the log tells of {ref:Ref}")
def log_tells(context: Any, ref: str) -> None:
    world = context.world
    task_id = world.task(ref or world.last).id
    told = [(entry["event"], entry["human"]) for entry in _log(context) if entry.get("job_id") == task_id]
    equal(told, [(row["event"], row["sentence"]) for row in context.table], "what the log tells")


@then("the log has no token and no prompt")
def log_has_no_secrets(context: Any) -> None:
    text = context.world.app.log.getvalue()
    assert text, "the log is empty"
    for secret in (context.world.plan.token, PROMPT):
        assert secret is None or secret not in text, "the log has a secret"


@then("the log says that {who} asked")
def log_says_who(context: Any, who: str) -> None:
    assert any(entry.get("identity") == who for entry in _log(context)), f"no line has identity {who}"


@then("the log has the fault under the same correlation id")
def log_has_the_fault(context: Any) -> None:
    wanted = {answer.headers["X-Correlation-Id"] for answer in context.world.answers.values()}
    told = {entry.get("correlation_id") for entry in _log(context) if "ZeroDivisionError" in entry.get("error", "")}
    equal(told, wanted, "the correlation ids of faults")


# -- documents -------------------------------------------------------------------------------------------------
@when("somebody asks what it can do")
def capabilities_are_asked(context: Any) -> None:
    context.world.send("GET", "/v1/capabilities")


@then("it speaks the version of the contracts")
def speaks_the_version(context: Any) -> None:
    own = contract.api_version()
    served = context.world.look("/openapi/data.json")["info"]["version"] if context.world.deployment else own
    equal(context.world.answer.json()["api_version"], served, "api_version")


@then("its engines are")
def engines_are(context: Any) -> None:
    shown = [
        {key: str(engine.get(key)) for key in context.table.headings}
        for engine in context.world.answer.json()["engines"]
    ]
    equal(shown, [dict(row.items()) for row in context.table], "the engines")


@then("its limits are")
def limits_are(context: Any) -> None:
    limits = context.world.answer.json()["limits"]
    equal(
        {row["limit"]: str(limits.get(row["limit"])) for row in context.table},
        {row["limit"]: row["value"] for row in context.table},
        "the limits",
    )


@then("no engine has rate limits")
def engines_have_no_rates(context: Any) -> None:
    assert all("rate_limits" not in engine for engine in context.world.answer.json()["engines"])


@then("it has an engine for the model")
def has_engine_for_model(context: Any) -> None:
    wanted = context.world.deployment.engine if context.world.deployment else "llamacpp"
    engines = {engine["engine"]: engine for engine in context.world.answer.json()["engines"]}
    assert wanted in engines, f"no engine {wanted}: {sorted(engines)}"
    assert engines[wanted]["concurrency"] >= 1, f"{wanted} has no slot"


@when("somebody opens the reference page")
def docs_are_opened(context: Any) -> None:
    context.world.send("GET", "/docs")


@then("the page has every operation")
def page_has_every_operation(context: Any) -> None:
    page = context.world.answer.text
    missing = [f"{op.method} {op.path}" for op in contract.operations() if f"{op.method} {op.path}" not in page]
    assert not missing, f"the page lacks {missing}"


@then("it loads nothing from elsewhere")
def page_is_alone(context: Any) -> None:
    page = context.world.answer.text
    loads = re.findall(r"<(?:script|link|img|iframe|object)|@import|url\(|(?:src|href)=['\"]?(?:https?:)?//", page)
    assert not loads, f"the page has {loads}"


@when('somebody fetches the "{document:Text}" contract')
def contract_is_fetched(context: Any, document: str) -> None:
    context.world.send("GET", f"/openapi/{document}.json")


@when('somebody fetches the "{document:Text}" contract in YAML')
def fetch_yaml(context: Any, document: str) -> None:
    context.world.send("GET", f"/openapi/{document}.yaml")


@then("it is the document that is served as JSON")
def is_same_document(context: Any) -> None:
    answer = context.world.answer
    assert answer.headers["Content-Type"] == "application/yaml"
    told = yaml.safe_load(answer.content)
    context.world.send("GET", urlsplit(answer.url).path.replace(".yaml", ".json"))
    assert told == context.world.answer.json(), "the two notations differ"


@then("it is a whole OpenAPI document with operation {operation:Word}")
def is_whole_document(context: Any, operation: str) -> None:
    document = context.world.answer.json()
    names = [raw["operationId"] for item in document["paths"].values() for raw in item.values() if "operationId" in raw]
    assert operation in names, f"it has {names}"
    assert "components.yaml" not in context.world.answer.text, "it refers to another file"
