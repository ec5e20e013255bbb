"""`orchestratord verify URL`: it finds a good daemon good, a bad one bad, and says what it left behind."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from orchestratord import cli, contract
from orchestratord.cli.command import UNAVAILABLE, USAGE
from orchestratord.testing import live, provider
from orchestratord.testing.ledger import Message, Receive, Send, ServedLedger
from orchestratord.testing.live import LiveApp, mock_settings
from orchestratord.wire.responses import WIRE


@pytest.fixture
def served() -> Iterator[LiveApp]:
    with LiveApp() as running:
        yield running


@pytest.mark.parametrize("token", [None, "a-token"])
def test_a_good_daemon_is_found_good(token: str | None) -> None:
    """Every operation has a row that was kept; with a token also its 401. OC-CTRL-2061."""
    with LiveApp(mock_settings(token=token)) as app:
        report = provider.inspect(app.url, token)
    assert [row for row in report.rows if row.problem] == []
    kept = {(row.operation, row.status) for row in report.rows}
    assert {op.operation_id for op in contract.operations()} <= {name for name, _ in kept}
    for operation in contract.operations():
        assert ((operation.operation_id, 401) in kept) == (token is not None)
    assert {("streamTask", 200), ("streamTask", 204), ("getArtifact", 304), ("deleteSession", 204)} <= kept


STRICTER: dict[str, dict[str, Any]] = {
    "a rate limit": {"auth": {"rate_limit": {"per_s": 0.1, "burst": 1}}},
    "a budget": {"sessions": {"budgets": {"tokens": 10}}},
    "strict trust": {"trust": {"mode": "strict"}},
    "little room": {"pools": [live.mock_pool(ctx=128)]},
}


@pytest.mark.parametrize("sections", STRICTER.values(), ids=STRICTER)
def test_a_daemon_with_limits_of_its_own_is_found_good(sections: dict[str, Any]) -> None:
    """What it may refuse is told as not shown, and is no breach."""
    with LiveApp(mock_settings(**sections)) as app:
        report = provider.inspect(app.url)
    assert [row for row in report.rows if row.problem] == []
    assert any(text.startswith("createTask 202: ") for text in report.skipped)
    assert "createTask" in {row.operation for row in report.rows}


def test_a_model_that_is_not_in_memory_is_as_good() -> None:
    """How long its tasks may be is not known before it was loaded once."""
    with LiveApp(mock_settings(pools=[live.mock_pool(load="on_demand")]), manual=False) as app:
        report = provider.inspect(app.url)
    assert [row for row in report.rows if row.problem] == []
    assert ("streamTask", 200) in {(row.operation, row.status) for row in report.rows}


def test_what_it_leaves_behind_is_what_it_says(served: LiveApp) -> None:
    """One artifact, one finished task with its transcript; no session, nothing running, every pool as it was."""
    before = served.session().get("/v1/pools").json()
    report = provider.inspect(served.url)
    with served.session() as session:
        tasks = session.get("/v1/tasks").json()["items"]
        artifacts = session.get("/v1/artifacts").json()["items"]
        assert [task["state"] for task in tasks] == ["ended"]
        assert session.get(f"/v1/sessions/{tasks[0]['session_id']}").status_code == 404
        assert session.get("/v1/pools").json() == before
    told = " ".join(report.left)
    assert tasks[0]["task_id"] in told
    mine = [artifact["id"] for artifact in artifacts if artifact["kind"] != "trace"]
    assert len(mine) == 1
    assert mine[0] in told


def test_a_drained_pool_makes_no_daemon_bad() -> None:
    """OD-12: what an operator has closed is no fault, and readiness does not count it."""
    with LiveApp(mock_settings(pools=[live.mock_pool("home"), live.mock_pool("old")])) as app:
        with app.session() as session:
            assert session.post("/v1/pools/old/drain", json={"deadline_ms": 1000}).status_code == 202
            app.advance(2)
            assert session.get("/readyz").status_code == 200
        report = provider.inspect(app.url)
    assert [row for row in report.rows if row.problem] == []


class Tampered(ServedLedger):
    """A daemon with one fault: which one, `fault` says."""

    fault = ""

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        scope.get("extensions", {}).pop(WIRE, None)  # what goes past ASGI cannot be tampered with here

        async def tampering(message: Message) -> None:
            if message["type"] == "http.response.start":
                if self.fault == "status" and scope["path"] == "/healthz":
                    message["status"] = 203
                if self.fault == "header":
                    message["headers"] = [(n, v) for n, v in message["headers"] if n.lower() != b"x-correlation-id"]
            if message["type"] == "http.response.body" and self.fault == "field":
                message["body"] = message["body"].replace(b'"ok"', b'"no"')
            await send(message)

        await super().__call__(scope, receive, tampering)


@pytest.mark.parametrize(
    ("fault", "broken"),
    [("status", {"getHealth"}), ("field", {"getHealth"}), ("header", {"getPoolHealth", "createTask", "NotFound"})],
)
def test_a_fault_is_found(monkeypatch: pytest.MonkeyPatch, fault: str, broken: set[str]) -> None:
    """Where it is, and the report says so; what is not touched by it stays kept."""
    monkeypatch.setattr(live, "ServedLedger", type("Faulty", (Tampered,), {"fault": fault}))
    with LiveApp() as app:
        report = provider.inspect(app.url)
    named = {row.operation: row.problem for row in report.rows if row.problem}
    assert (broken <= named.keys()) if fault == "header" else (broken == named.keys()), named
    assert report.failed
    text = "\n".join(report.table())
    assert "BROKEN" in text
    assert "is kept" not in text


def verify(*arguments: str) -> int:
    return cli.main(["verify", *arguments])


def test_the_command_prints_a_table(served: LiveApp, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(served.url) == 0
    out = capsys.readouterr().out
    assert all(operation.operation_id in out for operation in contract.operations())
    assert f"contract {contract.api_version()} is kept" in out


def test_the_command_prints_json(served: LiveApp, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(served.url, "--json", "--model-ref", "home") == 0
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert told["failed"] is False
    assert {"operation": "createTask", "status": 202, "problem": ""} in told["rows"]


def test_the_command_tells_failure_and_absence_apart(
    served: LiveApp, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unknown model breaks the task's rows: 1. Nobody there: 69. No address: 2."""
    assert verify(served.url, "--model-ref", "nowhere") == 1
    assert "BROKEN createTask 202" in capsys.readouterr().out
    assert verify("http://127.0.0.1:9") == UNAVAILABLE
    assert "no daemon answers" in capsys.readouterr().err
    assert verify("not an address") == USAGE


def test_a_server_of_another_kind_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it answers, the report is a report."""
    monkeypatch.setattr(live, "ServedLedger", Stranger)
    app = LiveApp()
    app.start(ready=False)
    try:
        report = provider.inspect(app.url)
    finally:
        app.stop()
    assert report.failed
    assert all(row.problem for row in report.rows)


class Stranger(ServedLedger):
    """Answers everything with an empty 200."""

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})
