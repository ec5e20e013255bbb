"""Admission: how long a prompt is, what an equal request gets, which seed is used, and what a failing journal means."""

from __future__ import annotations

import asyncio
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import requests

from orchestratord.domain.errors import StorageUnavailable
from orchestratord.domain.hooks import Sized
from orchestratord.domain.request import Caller
from orchestratord.infra.engines.mock import MockEngine
from orchestratord.infra.journal.memory import MemoryJournal
from orchestratord.ports import EngineError
from orchestratord.testing.live import LiveApp, mock_pool, mock_settings
from orchestratord.testing.session import VerifyingSession
from orchestratord.wire.tasks import parse_request
from tests.services.support import BreakingJournal, health, leases, records, state_of, submit, task, wait_for


@pytest.fixture
def app() -> Any:
    with LiveApp() as running:
        yield running


@pytest.fixture
def session(app: LiveApp) -> Any:
    with app.session() as opened:
        yield opened


class Asked:
    """Notes what an engine's tokenizer is asked, and answers in its place if told to."""

    def __init__(self, app: LiveApp, answer: int | BaseException | str | None = None) -> None:
        self.texts: list[str] = []
        engine = app.engine()
        tokenize, clock = engine.tokenize, app.daemon.clock

        async def noting(text: str) -> int:
            self.texts.append(text)
            if isinstance(answer, BaseException):
                raise answer
            if isinstance(answer, str):
                await clock.sleep({"silence": 3600, "late": 0.5}[answer])
            return answer if isinstance(answer, int) else await tokenize(text)

        engine.tokenize = noting  # type: ignore[method-assign]


def post(session: VerifyingSession, **fields: Any) -> requests.Response:
    return session.post("/v1/tasks", json=task(**fields))


def rule(answer: requests.Response) -> str:
    assert answer.status_code == 400, answer.text
    found: str = answer.json()["details"]["rule"]
    return found


def test_an_admission_that_asks_no_engine_waits_for_its_commit_alone(app: LiveApp) -> None:
    """It needs no Task and no timer: the first thing it waits for is a future, when its fact is with the journal."""

    def begin() -> tuple[Any, int]:
        timers = len(app.clock._timers)
        body = {**task(), "task_id": str(uuid.uuid4())}
        admitting = app.daemon.admission.admit(parse_request(body), b"print", Caller("cid", "localhost"))
        waits_for = admitting.send(None)
        known = app.daemon.core.tasks.get(body["task_id"])
        admitting.close()
        assert known is not None
        return waits_for, len(app.clock._timers) - timers

    waits_for, timers = app.call(begin)
    assert (asyncio.isfuture(waits_for), timers) == (True, 0)


def test_pairs_of_a_rerank_are_counted_with_the_marks_of_both(app: LiveApp, session: VerifyingSession) -> None:
    """ORCH-3016: query and document are texts of their own; the message names the document that does not fit."""
    asked = Asked(app)
    rerank = {"workload": "rerank", "prompt": "a query", "max_tokens": 1}
    assert post(session, **rerank, inputs=["x" * 7, "y" * 6], ctx=16).status_code == 202  # bounds: 8 + 8
    assert asked.texts == []
    longer = ["x" * 7, "y " * 13]  # exactly 3 + 14
    refusal = post(session, **rerank, inputs=longer, ctx=16)
    assert rule(refusal) == "prompt_exceeds_ctx"
    assert refusal.json()["details"]["field"] == "inputs[1]"
    assert refusal.json()["details"]["tokens_in"] == 17
    assert asked.texts == ["a query", longer[1]]
    assert post(session, **rerank, inputs=longer, ctx=17).status_code == 202


def test_each_input_of_an_embedding_has_the_context_to_itself(app: LiveApp, session: VerifyingSession) -> None:
    """ORCH-3016: what counts is the longest, not the sum."""
    embedding = {"workload": "embedding", "prompt": None, "max_tokens": 1, "ctx": 16}
    assert post(session, **embedding, inputs=["x" * 15] * 9).status_code == 202
    refusal = post(session, **embedding, inputs=["x", "y " * 16])
    assert (rule(refusal), refusal.json()["details"]["field"]) == ("prompt_exceeds_ctx", "inputs[1]")


def test_more_vectors_than_an_output_may_hold(app: LiveApp, session: VerifyingSession) -> None:
    """The first such task ends by the rule; from then on it is a 400 that says how many inputs fit, and they do."""
    limits = app.daemon.core.limits
    embedding = {"workload": "embedding", "prompt": None, "max_tokens": 1, "ctx": 64}
    app.call(lambda: setattr(app.daemon.core, "limits", replace(limits, task_bytes=3000)))
    try:
        with session.events(submit(session, **embedding, inputs=["x"] * 200)) as events:
            last = list(events)[-1]
        assert (last.name, last.data["code"], last.data["retriable"]) == ("error", "INVALID_PARAMS", False)
        assert last.data["details"] == {"rule": "output_exceeds_limit", "limit": 3000}
        refusal = post(session, **embedding, inputs=["x"] * 200)
        assert rule(refusal) == "output_exceeds_limit"
        fits = refusal.json()["details"]["limit"]
        assert 0 < fits < 200
        assert rule(post(session, **embedding, inputs=["x"] * (fits + 1))) == "output_exceeds_limit"
        with session.events(submit(session, **embedding, inputs=["x"] * (fits - 2))) as events:  # `started`, `end`
            assert list(events)[-1].name == "end"
    finally:
        app.call(lambda: setattr(app.daemon.core, "limits", limits))


def test_a_probe_shows_how_long_a_vector_is() -> None:
    """Of an engine that only embeds, so that not even the first task has to fail."""
    app = LiveApp()
    app.daemon.core.limits = replace(app.daemon.core.limits, task_bytes=3000)
    assert app.clock is not None
    mock = MockEngine(clock=app.clock, workloads=frozenset({"embedding"}))
    app.daemon.mocks["home", "r0"] = mock
    with app, app.session() as session:
        refusal = post(session, workload="embedding", prompt=None, max_tokens=1, ctx=64, inputs=["x"] * 200)
        assert rule(refusal) == "output_exceeds_limit"
        assert mock.calls == 1


@pytest.mark.parametrize("workload", ["embedding", "rerank"])
def test_knobs_of_text_are_refused_where_none_is_written(session: VerifyingSession, workload: str) -> None:
    """A knob that nothing would honour is named, never dropped."""
    prompt = "q" if workload == "rerank" else None
    refusal = post(session, workload=workload, prompt=prompt, inputs=["x"], sampling={"temperature": 0.5})
    assert rule(refusal) == "unsupported_sampling"
    assert refusal.json()["details"]["field"] == "sampling.temperature"


# -- prompt size ---------------------------------------------------------------------------------------------
def test_a_prompt_whose_bound_fits_is_not_counted(app: LiveApp, session: VerifyingSession) -> None:
    """bound(text) = characters + 1: 10 characters and 5 tokens fit into 16."""
    asked = Asked(app)
    assert post(session, prompt="0123456789", max_tokens=5, ctx=16).status_code == 202
    assert asked.texts == []


def test_a_prompt_whose_bound_does_not_fit_is_counted(app: LiveApp, session: VerifyingSession) -> None:
    """The engine's own count decides: two words and a begin mark are three tokens."""
    asked = Asked(app)
    long = "a" * 100 + " " + "b" * 100
    assert post(session, prompt=long, max_tokens=5, ctx=8).status_code == 202
    assert asked.texts == [long]
    refusal = post(session, prompt=long, max_tokens=6, ctx=8)
    assert rule(refusal) == "prompt_exceeds_ctx"
    details = refusal.json()["details"]
    assert (details["tokens_in"], details["max_tokens"], details["ctx"]) == (3, 6, 8)
    assert asked.texts == [long], "the second time the count is remembered"


def test_the_remembered_count_is_of_this_text(app: LiveApp, session: VerifyingSession) -> None:
    asked = Asked(app)
    for text in ("a" * 50, "b" * 50, "a" * 50):
        assert post(session, prompt=text, max_tokens=1, ctx=3).status_code == 202
    assert asked.texts == ["a" * 50, "b" * 50]


def test_the_exact_count_is_the_limit(app: LiveApp, session: VerifyingSession) -> None:
    Asked(app, 100)
    text = "x" * 600
    for ctx, status in ((104, 400), (105, 202), (106, 202)):
        assert post(session, prompt=text, max_tokens=5, ctx=ctx).status_code == status


def refused_in_time(app: LiveApp, session: VerifyingSession, body: dict[str, Any], step: float) -> Any:
    """The refusal of a task that cannot be measured, time going on by `step` until it comes."""
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(session.post, "/v1/tasks", json=body)
        while not asking.done():
            app.advance(step)
        refusal = asking.result()
    assert (refusal.status_code, refusal.json()["code"], refusal.json()["retriable"]) == (503, "POOL_UNREADY", True)
    return refusal


@pytest.mark.parametrize(
    "answer",
    ["silence", EngineError("lost", "gone"), EngineError("timeout", "slow"), EngineError("failed", "bang")],
    ids=str,
)
def test_without_a_count_the_task_has_to_come_back(app: LiveApp, session: VerifyingSession, answer: Any) -> None:
    """Not a guess: 503, within a second, and nothing remembered."""
    Asked(app, answer)
    body = task(prompt="x" * 100, ctx=50)
    refusal = refused_in_time(app, session, body, 0.3)
    assert refusal.headers["Retry-After"] == "1"
    assert session.get(f"/v1/tasks/{body['task_id']}").status_code == 404
    assert session.get(f"/v1/sessions/{body['session_id']}").status_code == 404


def test_all_inputs_together_have_a_second(app: LiveApp, session: VerifyingSession) -> None:
    """ORCH-3016: each had one of its own, so 256 held their admission for minutes. What was counted is kept."""
    asked = Asked(app, "late")
    body = task(workload="embedding", prompt=None, inputs=[f"{i} " * 50 for i in range(8)], ctx=60, max_tokens=1)
    refused_in_time(app, session, body, 0.25)
    assert len(asked.texts) <= 3, "no more is asked once the second is over"


def test_time_counts_from_the_receipt_of_the_request(app: LiveApp, session: VerifyingSession) -> None:
    """ORCH-3014: what sizing took is part of the deadline, of the prediction and of the task's age."""
    asked = Asked(app, "late")
    app.call(app.engine().hold)
    received, received_ms = app.call(lambda: (app.daemon.clock.now(), app.daemon.clock.wall_ms()))
    body = task(prompt="word " * 100, ctx=400, deadline_ms=60_000)
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(session.post, "/v1/tasks", json=body)
        wait_for(lambda: asked.texts, "it is being sized")
        app.advance(0.5)
        answer = asking.result().json()
    assert answer["predicted_start_ms"] == 500
    assert session.get(f"/v1/tasks/{body['task_id']}").json()["created_at_ms"] == received_ms
    assert app.call(app.daemon.core.tasks.next_deadline) == pytest.approx(received + 60)


def test_an_engine_that_refuses_the_text_refuses_the_task(app: LiveApp, session: VerifyingSession) -> None:
    Asked(app, EngineError("refused", "not UTF-8 enough"))
    refusal = post(session, prompt="x" * 100, ctx=50)
    assert refusal.status_code == 400
    assert "not UTF-8 enough" in refusal.json()["message"]


def test_more_context_than_the_model_has_is_refused(session: VerifyingSession) -> None:
    assert post(session, ctx=4096).status_code == 202
    refusal = post(session, ctx=4097)
    assert rule(refusal) == "ctx_exceeds_model"
    assert "4096" in refusal.json()["message"]


def test_messages_go_through_the_engines_template(app: LiveApp, session: VerifyingSession) -> None:
    """The rendered text is what is counted, and what the engine gets."""
    asked = Asked(app)
    seen: list[str] = []
    work = app.engine().run

    def noting(job: Any, deliver: Any) -> Any:
        seen.append(job.prompt)
        return work(job, deliver)

    app.engine().run = noting  # type: ignore[method-assign]
    chat = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
    expected = "<system> be brief\n<user> hi\n<assistant>"
    assert post(session, prompt=None, messages=chat, ctx=12, max_tokens=5).status_code == 202
    app.settle()
    assert asked.texts == [expected]
    assert seen == [expected]


def test_a_model_without_a_template_takes_no_messages() -> None:
    with LiveApp() as app, app.session() as session:
        app.call(lambda: app.engine().change(chat_template=False))
        app.call(lambda: setattr(app.daemon.core.pools["home"].replicas["r0"], "chat_template", False))
        assert rule(post(session, prompt=None, messages=[{"role": "user", "content": "hi"}])) == "no_chat_template"


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": None},
        {"messages": [{"role": "user", "content": "x"}]},
        {"inputs": ["x"]},
        {"workload": "embedding"},
        {"workload": "embedding", "inputs": ["x"]},
        {"workload": "embedding", "prompt": None},
        {"workload": "rerank"},
        {"workload": "rerank", "prompt": None, "inputs": ["x"]},
        {"workload": "rerank", "inputs": ["x"], "messages": [{"role": "user", "content": "x"}]},
    ],
    ids=str,
)
def test_the_input_must_suit_the_workload(session: VerifyingSession, fields: dict[str, Any]) -> None:
    assert rule(post(session, **fields)) == "inputs_for_workload"


def test_an_unknown_profile_is_refused(session: VerifyingSession) -> None:
    assert rule(post(session, sampler_profile_version="v9")) == "unknown_profile"
    assert post(session, sampler_profile_version="v1").status_code == 202


def test_a_knob_the_engine_does_not_have_is_named(session: VerifyingSession) -> None:
    refusal = post(session, sampling={"json_schema": {"type": "object"}})
    assert rule(refusal) == "unsupported_sampling"
    assert "json_schema" in refusal.text


# -- idempotency ---------------------------------------------------------------------------------------------
def test_fifty_equal_requests_at_once_are_one_task(app: LiveApp) -> None:
    app.call(app.engine().hold)
    body = task()
    sessions = [app.session() for _ in range(50)]
    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(lambda one: one.post("/v1/tasks", json=body), sessions))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.text for answer in answers}) == 1
    assert sum("X-Idempotent-Replay" not in answer.headers for answer in answers) == 1
    app.call(app.engine().release_hold)
    app.settle()
    assert app.call(lambda: app.engine().calls) == 3  # the probe's two and one
    assert len(list(records(app, "task_admitted"))) == 1
    assert sessions[0].get(f"/v1/sessions/{body['session_id']}").json()["turns"] == 1


def test_equal_requests_are_one_task_though_they_are_sized_meanwhile(app: LiveApp) -> None:
    """All wait for the tokenizer; whichever comes second is a replay, not a second admission."""
    asked = Asked(app, "late")
    body = task(prompt="word " * 100, ctx=400)
    sessions = [app.session() for _ in range(10)]
    with ThreadPoolExecutor(10) as pool:
        answers = [pool.submit(one.post, "/v1/tasks", json=body) for one in sessions]
        wait_for(lambda: len(asked.texts) == 10, "every request is being sized")
        app.advance(0.6)
        replies = [answer.result() for answer in answers]
    assert {reply.status_code for reply in replies} == {202}
    assert len({reply.text for reply in replies}) == 1
    assert sum("X-Idempotent-Replay" not in reply.headers for reply in replies) == 1
    assert len(list(records(app, "task_admitted"))) == 1
    assert sessions[0].get(f"/v1/sessions/{body['session_id']}").json()["turns"] == 1


def test_after_the_fact_the_first_answer_is_told_again(app: LiveApp, session: VerifyingSession) -> None:
    """Whatever has become of the task and the queue since; key order and spelling of numbers do not matter."""
    app.call(app.engine().hold)
    for _ in range(4):
        submit(session)
    body = task(sampling={"temperature": 0.5})
    first = session.post("/v1/tasks", json=body)
    assert first.json()["queue_position"] == 2
    app.call(app.engine().release_hold)
    app.settle()
    assert state_of(session, str(body["task_id"])) == "ended"
    equal = dict(reversed(body.items()))
    for again in (session.post("/v1/tasks", json=body), session.post("/v1/tasks", json=equal)):
        assert (again.status_code, again.json()) == (202, first.json())
        assert again.headers["X-Idempotent-Replay"] == "true"
        assert again.headers["Location"] == first.headers["Location"]
    assert session.get(f"/v1/sessions/{body['session_id']}").json()["turns"] == 1


@pytest.mark.parametrize(
    "change", [{"max_tokens": 6}, {"prompt": "other"}, {"seed": 1}, {"priority": "batch"}], ids=str
)
def test_another_body_under_the_same_id_is_409(session: VerifyingSession, change: dict[str, Any]) -> None:
    body = task()
    assert session.post("/v1/tasks", json=body).status_code == 202
    refusal = session.post("/v1/tasks", json={**body, **change})
    assert (refusal.status_code, refusal.json()["code"]) == (409, "CONFLICT")


def test_a_refused_id_is_not_remembered(session: VerifyingSession) -> None:
    body = task(ctx=5000)
    assert session.post("/v1/tasks", json=body).status_code == 400
    assert session.post("/v1/tasks", json={**body, "ctx": 500}).status_code == 202


def test_a_crowd_of_finished_tasks_is_cut_down_while_it_comes() -> None:
    """Not only every ten seconds, in which thousands may end: their number is what bounds the memory."""
    settings = mock_settings(retention={"tasks": 3}, artifacts={"transcripts": "off"})
    with LiveApp(settings) as app, app.session() as session:
        ids = [submit(session) for _ in range(8)]
        app.advance(1)
        assert {item["task_id"] for item in session.get("/v1/tasks").json()["items"]} == set(ids[-3:])


def test_past_retention_the_id_is_free_again() -> None:
    settings = mock_settings(retention={"tasks_ms": 60_000}, streams={"disconnect_grace_ms": 1000})
    with LiveApp(settings) as app, app.session() as session:
        body = task()
        assert session.post("/v1/tasks", json=body).status_code == 202
        app.advance(75)
        assert session.get(f"/v1/tasks/{body['task_id']}").status_code == 404
        again = session.post("/v1/tasks", json=body)
        assert again.status_code == 202
        assert "X-Idempotent-Replay" not in again.headers


# -- seeds ---------------------------------------------------------------------------------------------------
def test_a_seed_is_drawn_and_reported() -> None:
    drawn = iter([11, 12])
    with LiveApp(draw_seed=lambda: next(drawn)) as app, app.session() as session:
        ids = [submit(session), submit(session, seed=7), submit(session)]
        app.settle()
        assert [session.get(f"/v1/tasks/{task_id}").json()["seed"] for task_id in ids] == [11, 7, 12]
        transcript = session.get(f"/v1/tasks/{ids[0]}").json()["transcript_id"]
        assert session.get(f"/v1/artifacts/{transcript}").json()["metadata"]["seed"] == 11


def test_drawn_seeds_differ(session: VerifyingSession) -> None:
    seeds = {session.get(f"/v1/tasks/{submit(session)}").json()["seed"] for _ in range(20)}
    assert len(seeds) > 15
    assert all(0 <= seed <= 4_294_967_294 for seed in seeds)


def test_the_reported_seed_gives_the_same_text(app: LiveApp, session: VerifyingSession) -> None:
    def text(task_id: str) -> str:
        app.settle()
        with session.events(task_id) as events:
            return "".join(event.data["t"] for event in events if event.name == "token")

    first = submit(session, max_tokens=20)
    seed = session.get(f"/v1/tasks/{first}").json()["seed"]
    assert text(submit(session, max_tokens=20, seed=seed)) == text(first)
    assert text(submit(session, max_tokens=20, seed=(seed + 1) % 1000)) != text(first)


# -- a full queue --------------------------------------------------------------------------------------------
def test_a_full_queue_refuses_with_honest_advice() -> None:
    with LiveApp(mock_settings(pools=[mock_pool(slots=1, capacity=3)])) as app, app.session() as session:
        app.call(app.engine().hold)
        first = submit(session)
        app.settle()
        queued = [submit(session) for _ in range(3)]
        for _ in range(3):
            refusal = post(session)
            assert (refusal.status_code, refusal.json()["code"]) == (429, "ADMISSION_REJECT")
            assert refusal.json()["policy_label"] == "reject"
            assert refusal.json()["retriable"] is True
            assert int(refusal.headers["X-Backoff-Ms"]) > 0
        assert session.post(f"/v1/tasks/{queued[1]}/cancel").status_code == 204
        assert post(session).status_code == 202  # exactly one more
        assert post(session).status_code == 429
        assert state_of(session, first) in ("starting", "running")
        app.call(app.engine().release_hold)


def test_a_burst_never_overshoots_the_queue(app: LiveApp) -> None:
    """500 at once into 64 places and two slots."""
    app.call(app.engine().hold)
    bodies = [task() for _ in range(300)]
    sessions = [app.session() for _ in range(30)]

    def submit_share(number: int) -> list[int]:
        return [sessions[number].post("/v1/tasks", json=body).status_code for body in bodies[number::30]]

    with ThreadPoolExecutor(30) as pool:
        statuses = [status for share in pool.map(submit_share, range(30)) for status in share]
    assert statuses.count(202) == 66
    assert statuses.count(429) == 300 - 66
    queue = health(sessions[0])["queue"]
    assert queue["interactive"] + queue["batch"] == 64
    app.call(app.engine().release_hold)


# -- a journal that fails ------------------------------------------------------------------------------------
def test_a_failed_commit_withdraws_the_task_without_trace() -> None:
    """503 instead of the 202: no place, no turn, no id is used up, and no engine is asked."""
    journal = BreakingJournal()
    with LiveApp(journal=journal) as app, app.session() as session:
        calls = app.call(lambda: app.engine().calls)
        body = task()
        journal.breaking = True
        refusal = session.post("/v1/tasks", json=body)
        assert (refusal.status_code, refusal.json()["code"]) == (503, "STORAGE_UNAVAILABLE")
        assert refusal.json()["retriable"] is True
        assert session.get(f"/v1/tasks/{body['task_id']}").status_code == 404
        assert session.get(f"/v1/sessions/{body['session_id']}").status_code == 404
        assert health(session)["queue"]["interactive"] == 0
        assert leases(app) == 0
        assert app.call(lambda: app.engine().calls) == calls
        assert list(records(app, "task_admitted")) == []
        assert session.get("/readyz").status_code == 503
        app.call(journal.mend)
        again = session.post("/v1/tasks", json=body)
        assert again.status_code == 202
        assert "X-Idempotent-Replay" not in again.headers
        app.settle()
        assert state_of(session, str(body["task_id"])) == "ended"


def test_equal_requests_share_the_fate_of_a_failed_commit() -> None:
    """Nobody is told 202 for a task that is withdrawn."""
    journal = BreakingJournal()
    with LiveApp(journal=journal) as app:
        body = task()
        journal.breaking = True
        sessions = [app.session() for _ in range(20)]
        with ThreadPoolExecutor(20) as pool:
            answers = list(pool.map(lambda one: one.post("/v1/tasks", json=body), sessions))
        assert {answer.status_code for answer in answers} == {503}


def test_whoever_reads_too_early_shares_the_fate_of_a_failed_commit() -> None:
    """ORCH-3006: a client may open the stream before it has its 202; it must not hang on a task that was withdrawn."""
    journal = BreakingJournal()
    with LiveApp(journal=journal) as app:
        request = parse_request(task())
        sized = Sized(request, b"x", 7, 3, None, Caller("c", "localhost"))

        async def read_early() -> str:
            daemon = app.daemon
            journal.breaking = True
            daemon.core.admit(sized, daemon.clock.now(), daemon.clock.wall_ms())
            try:
                await daemon.streams.follow(request.task_id, None, None)
            except StorageUnavailable:
                return "refused"
            return "reads"

        assert asyncio.run_coroutine_threadsafe(read_early(), app._loop).result(5) == "refused"
        assert app.call(lambda: app.daemon.streams.open_cursors) == 0


def test_a_broken_journal_refuses_before_it_decides(app: LiveApp, session: VerifyingSession) -> None:
    journal = app.daemon.journal
    assert isinstance(journal, MemoryJournal)
    journal.broken = "read-only file system"
    refusal = post(session)
    assert (refusal.status_code, refusal.json()["code"]) == (503, "STORAGE_UNAVAILABLE")
    assert "read-only" not in refusal.text
    assert "journal" in session.get("/readyz").text
    assert session.get("/healthz").status_code == 200
    assert session.get("/v1/pools").status_code == 200


def test_tasks_are_listed_by_session_and_state(app: LiveApp, session: VerifyingSession) -> None:
    """OD-10: newest first, and only what was asked for."""
    one, other = str(uuid.uuid4()), str(uuid.uuid4())
    first, second, third = (submit(session, session_id=each) for each in (one, other, one))
    app.advance(1)
    app.call(app.engine().hold)
    fourth = submit(session, session_id=one)
    app.settle()

    def listed(query: str) -> list[str]:
        return [task["task_id"] for task in session.get(f"/v1/tasks?{query}").json()["items"]]

    assert listed("") == [fourth, third, second, first]
    assert listed(f"session_id={one}") == [fourth, third, first]
    assert listed(f"session_id={one}&state=ended") == [third, first]
    assert listed("state=starting") == [fourth]


def test_a_repeat_does_not_wait_for_the_end_of_its_task(app: LiveApp, session: VerifyingSession) -> None:
    """ORCH-2007: it is answered as the first one was; what the journal has still to write is not its matter."""
    app.call(app.engine().hold)
    body = task()
    assert session.post("/v1/tasks", json=body).status_code == 202
    app.settle()
    journal = app.daemon.journal
    assert isinstance(journal, MemoryJournal)
    flush, closing = journal._flush, app.daemon.core.closing
    journal._flush = lambda: None  # type: ignore[method-assign]
    with ThreadPoolExecutor() as pool, app.session() as other, app.session() as third:
        cancel = pool.submit(other.post, f"/v1/tasks/{body['task_id']}/cancel")
        wait_for(lambda: body["task_id"] in closing, "the cancel waits for the journal")
        repeat = pool.submit(third.post, "/v1/tasks", json=body)
        try:
            assert repeat.result(5).headers["X-Idempotent-Replay"] == "true"
            assert not cancel.done()
        finally:
            journal._flush = flush  # type: ignore[method-assign]
            app.call(flush)
        assert cancel.result(5).status_code == 204


def test_a_cancel_that_cannot_be_journaled_seals_all_the_same(app: LiveApp, session: VerifyingSession) -> None:
    """503, and yet nothing more comes."""
    app.call(app.engine().hold)
    task_id = submit(session)
    app.settle()
    app.call(lambda: app.engine().step(2))
    app.settle()
    journal = app.daemon.journal
    assert isinstance(journal, MemoryJournal)
    journal.broken = "no space left on device"
    for _ in range(2):  # asked again it is as little acknowledged, and worth as long a wait
        refusal = session.post(f"/v1/tasks/{task_id}/cancel")
        assert (refusal.status_code, refusal.json()["code"]) == (503, "STORAGE_UNAVAILABLE")
        assert (refusal.headers["Retry-After"], refusal.json()["retry_after_ms"]) == ("1", 1000)
    app.call(app.engine().release_hold)
    app.settle()
    with session.events(task_id) as events:
        frames = list(events)
    assert [frame.name for frame in frames if frame.id is not None] == ["started", "token", "token", "end"]
    assert frames[-1].data["finish_reason"] == "canceled"
    assert leases(app) == 0


def test_a_journal_that_fails_while_a_task_starts_ends_the_task(app: LiveApp, session: VerifyingSession) -> None:
    """No token may be seen that a restart would not know of."""
    app.call(app.engine().hold)
    task_id = submit(session)
    app.settle()
    journal = app.daemon.journal
    assert isinstance(journal, MemoryJournal)
    journal.broken = "no space left on device"
    app.call(app.engine().release_hold)
    app.settle()
    with session.events(task_id) as events:
        frames = [frame for frame in events if frame.id is not None]
    assert frames[-1].name == "error"
    assert frames[-1].data["code"] == "STORAGE_UNAVAILABLE"
    assert leases(app) == 0


def test_sessions_that_are_too_long_are_refused(session: VerifyingSession) -> None:
    same = str(uuid.uuid4())
    for _ in range(8):
        submit(session, session_id=same)
    refusal = post(session, session_id=same)
    assert (refusal.status_code, refusal.json()["policy_label"]) == (429, "session-turns")
    assert refusal.json()["retriable"] is False
