"""What is counted adds up, and what is logged is readable, complete and tells no secrets."""

from __future__ import annotations

import json
import re
import uuid

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from orchestratord.infra.engines.mock import MockScript
from orchestratord.testing.live import LiveApp, mock_pool, mock_settings
from orchestratord.testing.session import VerifyingSession
from tests.services.support import BreakingJournal, records, submit, task

CANARY = "canary-" + "7d1f"


class Scrape:
    """One reading of /metrics."""

    def __init__(self, session: VerifyingSession) -> None:
        self.text = session.get("/metrics").text
        self.samples = [sample for family in text_string_to_metric_families(self.text) for sample in family.samples]

    def total(self, name: str, **labels: str) -> float:
        return sum(s.value for s in self.samples if s.name == name and labels.items() <= s.labels.items())


def tight(journal: BreakingJournal | None = None) -> LiveApp:
    """One pool with one slot and a queue of four."""
    return LiveApp(mock_settings(pools=[mock_pool(slots=1, capacity=4)]), journal=journal)


def check_identities(app: LiveApp, session: VerifyingSession) -> Scrape:
    """Section 11: enqueued = ended{queued} + started + queued; started = ended{running} + running."""
    now = Scrape(session)
    ended = "orchestratord_tasks_ended_total"
    queued = now.total("queue_depth")
    running = now.total("active_leases")
    running += app.call(
        lambda: sum(pool.queue.retrying for pool in app.daemon.core.pools.values())
    )  # between two leases
    assert (
        now.total("tasks_enqueued_total")
        == now.total(ended, phase="queued") + now.total("tasks_started_total") + queued
    )
    assert now.total("tasks_started_total") == now.total(ended, phase="running") + running
    tasks = session.get("/v1/tasks?limit=200").json()["items"]
    states = [item["state"] for item in tasks]
    assert queued == states.count("queued")
    assert running == states.count("running") + states.count("starting")
    for outcome, state in (("end", "ended"), ("canceled", "canceled"), ("error", "failed")):
        assert now.total(ended, outcome=outcome) == states.count(state), outcome
    return now


def test_the_books_balance_at_every_step_of_a_workload() -> None:
    """Ends, cancels in every phase, deadlines, faults, watchdogs, refusals, replays and readers who leave."""
    with tight() as app, app.session() as session:
        engine = app.engine()
        check_identities(app, session)

        finished = [submit(session, max_tokens=n) for n in (1, 3)]  # two natural ends
        app.settle()
        now = check_identities(app, session)
        assert now.total("tokens_out_total") == 4
        assert now.total("latency_first_token_ms_count") == 2
        assert now.total("latency_decode_ms_count") == 2

        app.call(engine.hold)
        running = submit(session)
        app.settle()
        app.call(lambda: engine.step(2))
        app.settle()
        queued = [submit(session), submit(session, priority="batch"), submit(session), submit(session)]
        now = check_identities(app, session)
        assert (now.total("queue_depth", priority="interactive"), now.total("queue_depth", priority="batch")) == (3, 1)

        for _ in range(2):  # no room
            assert session.post("/v1/tasks", json=task()).status_code == 429
        assert session.post("/v1/tasks", json=task(ctx=9999)).status_code == 400
        assert session.post("/v1/tasks", json=task(engine="vllm")).status_code == 503
        now = check_identities(app, session)
        assert now.total("tasks_rejected_total") == 4
        assert now.total("admission_backpressure_events_total", policy="reject") == 2

        assert session.post(f"/v1/tasks/{queued[0]}/cancel").status_code == 204
        assert session.post(f"/v1/tasks/{running}/cancel").status_code == 204
        assert session.post(f"/v1/tasks/{finished[0]}/cancel").status_code == 204  # changes nothing
        app.advance(1)
        now = check_identities(app, session)
        assert now.total("tasks_canceled_total", reason="client") == 2

        app.call(engine.release_hold)
        app.settle()
        check_identities(app, session)

        for script in (MockScript(die_after=2), MockScript(refuse="no"), MockScript(error_after=0)):
            engine.play(script)
            submit(session)
            app.settle()
            check_identities(app, session)
            app.advance(31)
        app.call(engine.hold)
        slow, late = submit(session, deadline_ms=40_000), submit(session, deadline_ms=10_000)
        app.advance(11)
        assert check_identities(app, session).total("tasks_canceled_total", reason="deadline") == 1
        app.advance(30)
        assert check_identities(app, session).total("tasks_canceled_total", reason="deadline") == 2
        assert slow != late
        hanging = submit(session)
        app.advance(130)
        now = check_identities(app, session)
        assert now.total("tasks_canceled_total", reason="watchdog") == 1
        assert hanging
        body = task()
        assert session.post("/v1/tasks", json=body).status_code == 202
        assert session.post("/v1/tasks", json=body).status_code == 202  # a replay is no second task
        assert session.delete(f"/v1/sessions/{body['session_id']}").status_code == 204
        app.call(engine.release_hold)
        app.advance(31)
        now = check_identities(app, session)
        assert now.total("tasks_canceled_total", reason="session_deleted") == 1
        assert now.total("queue_depth") == now.total("active_leases") == 0
        assert now.total("tasks_enqueued_total") == len(session.get("/v1/tasks?limit=200").json()["items"])


def test_an_admission_that_was_withdrawn_is_not_counted() -> None:
    journal = BreakingJournal()
    with tight(journal) as app, app.session() as session:
        journal.breaking = True
        assert session.post("/v1/tasks", json=task()).status_code == 503
        now = check_identities(app, session)
        assert now.total("tasks_enqueued_total") == 0
        assert now.total("tasks_rejected_total") == 1


def test_client_text_is_never_a_label() -> None:
    """Ten thousand different names leave as many series as one."""
    with tight() as app, app.session() as session:
        session.post("/v1/tasks", json=task(engine="vllm", model_ref="first"))
        session.get("/nope")
        before = len(Scrape(session).samples)
        for number in range(50):
            session.post("/v1/tasks", json=task(engine="vllm", model_ref=f"{CANARY}-{number}"))
            session.post("/v1/tasks", json=task(sampler_profile_version=f"{CANARY}-{number}", engine="vllm"))
            session.get(f"/{CANARY}-{number}")
        now = Scrape(session)
        assert CANARY not in now.text
        assert len(now.samples) <= before + 3


def test_no_sample_stands_for_what_is_not_known() -> None:
    """Without a GPU there is no GPU figure, never a zero."""
    with LiveApp() as app, app.session() as session:
        assert not [s for s in Scrape(session).samples if s.name in ("gpu_utilization", "vram_used_bytes")]


# -- the log -------------------------------------------------------------------------------------------------
POINTS = ("task_admitted", "task_placed", "task_started", "task_ended", "task_canceled")
FIELDS = ("job_id", "session_id", "engine", "pool_id", "model_id", "ctx", "correlation_id", "queue_position")


def test_every_line_is_one_json_object_with_a_sentence_at_the_five_points() -> None:
    with tight() as app, app.session() as session:
        answer = session.post("/v1/tasks", json=task(), headers={"X-Correlation-Id": "follow-me"})
        app.call(app.engine().hold)
        canceled = submit(session)
        session.post(f"/v1/tasks/{canceled}/cancel")
        app.call(app.engine().release_hold)
        app.advance(1)
        lines = app.log.getvalue().splitlines()
        found = [json.loads(line) for line in lines]
        assert all(isinstance(record, dict) for record in found)
        for point in POINTS:
            told = [record for record in found if record["event"] == point]
            assert told, point
            for record in told:
                assert len(record["human"]) > 5
                assert "\n" not in record["human"]
                assert not [field for field in FIELDS if field not in record], point
        mine = [record["event"] for record in found if record.get("correlation_id") == "follow-me"]
        assert mine == ["task_placed", "task_admitted", "task_started", "task_ended"]
        (ended,) = [r for r in found if r["event"] == "task_ended" and r["job_id"] == answer.json()["task_id"]]
        for field in ("engine_version", "replica_id", "tokens_in", "tokens_out", "decode_time_ms", "queue_time_ms"):
            assert field in ended, field


def test_the_further_fields_of_section_11() -> None:
    with tight() as app, app.session() as session:
        submit(session)
        app.settle()
        (ended,) = records(app, "task_ended")
        assert {"quant", "kv_warmth", "sampler_profile_version"} <= ended.keys()


def test_the_number_of_lines_does_not_depend_on_the_number_of_tokens() -> None:
    counts = []
    for tokens in (1, 200):
        with tight() as app, app.session() as session:
            submit(session, max_tokens=tokens)
            app.settle()
            counts.append(len(app.log.getvalue().splitlines()))
    assert counts[0] == counts[1]


def test_no_secret_reaches_the_log_the_metrics_or_an_answer() -> None:
    """Prompts, messages, inputs, outputs and the token, on the way of success and of every refusal."""
    token = f"{CANARY}-token"
    secret = f"{CANARY}-prompt"
    settings = msgspec.structs.replace(mock_settings(pools=[mock_pool(slots=1, capacity=2)]), token=token)
    with LiveApp(settings) as app, app.session(token) as session:
        chat = [{"role": "user", "content": secret}]
        shown = [
            session.post("/v1/tasks", json=task(prompt=secret)),
            session.post("/v1/tasks", json=task(prompt=None, messages=chat)),
            session.post("/v1/tasks", json=task(prompt=None, workload="embedding", inputs=[secret])),
            session.post("/v1/tasks", json=task(prompt=secret, workload="rerank", inputs=[secret])),
            session.post("/v1/tasks", json=task(prompt=f"{secret} " * 100, ctx=50)),
            session.post("/v1/tasks", json=task(prompt=secret, engine="vllm")),
            session.post("/v1/tasks", json=task(prompt=secret, messages=chat)),
            session.post("/v1/tasks", json=task(prompt=secret, deadline_ms=1, max_tokens=400)),
        ]
        app.settle()
        app.engine().play(MockScript(die_after=1))
        shown.append(session.post("/v1/tasks", json=task(prompt=secret)))
        app.advance(31)
        app.daemon.pools.capabilities = _explode  # type: ignore[assignment,method-assign]
        shown.append(session.get("/v1/capabilities", headers={"Authorization": f"Bearer {token}"}))
        assert shown[-1].status_code == 500
        shown.append(app.session(f"{token}-wrong").get("/v1/pools"))
        for item in session.get("/v1/tasks").json()["items"]:
            shown.append(session.get(f"/v1/tasks/{item['task_id']}"))
            if "transcript_id" in item:
                shown.append(session.get(f"/v1/artifacts/{item['transcript_id']}"))
        shown.append(session.get("/metrics"))
        shown.append(session.get("/v1/pools/home/health"))
        assert len(shown) > 15
        for answer in shown:
            assert CANARY not in answer.text, answer.text
            assert CANARY not in str(answer.headers)
        assert CANARY not in app.log.getvalue()


def _explode() -> None:
    raise RuntimeError("unforeseen")


HOSTILE = ["a\nb", 'a"}\n{"event":"forged"}', "\x1b[31mred", "a\u2028b", "a\u0085b", "\u202egnp"]


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_no_client_text_breaks_a_line(text: str) -> None:
    """One record, one line, whatever stands in the fields that are logged."""
    with tight() as app, app.session() as session:
        session.post("/v1/tasks", json=task(sampler_profile_version=text))
        session.post("/v1/tasks", json=task(output_mode=text, prompt=text))
        session.get("/nope?" + "a=b", headers={"User-Agent": "x"})
        app.settle()
        log = app.log.getvalue()
        for line in log.split("\n")[:-1]:
            record = json.loads(line)
            assert record["event"] != "forged"
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", log)


def test_uncommon_ids_are_logged_as_they_came() -> None:
    """Ids are kept in lower case, so that one id is one id in every log."""
    with tight() as app, app.session() as session:
        body = task(task_id=str(uuid.uuid4()).upper())
        assert session.post("/v1/tasks", json=body).status_code == 202
        (admitted,) = records(app, "task_admitted")
        assert admitted["job_id"] == str(body["task_id"]).lower()
