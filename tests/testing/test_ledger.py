"""`testing.ledger`: whatever the app starts to answer is noted, and nothing else changes."""

from __future__ import annotations

import asyncio

from orchestratord.testing.ledger import Entry, Message, Receive, Send, ServedLedger


def run(ledger: ServedLedger, scope: Message) -> list[Message]:
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request"}

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(ledger(scope, receive, send))
    return sent


def request(correlation_id: str, path: str = "/healthz") -> Message:
    return {"type": "http", "method": "GET", "path": path, "id": correlation_id}


async def app(scope: Message, receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        await send({"type": "lifespan.startup.complete"})
        return
    headers = [(b"X-Correlation-Id", scope["id"].encode())] if scope["id"] else []
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"x"})


def test_every_started_response_is_noted() -> None:
    """With correlation id, status, method and path; the messages pass unchanged."""
    ledger = ServedLedger(app)
    assert [message["type"] for message in run(ledger, request("a"))] == ["http.response.start", "http.response.body"]
    assert ledger.entries == [Entry("a", 200, "GET", "/healthz")]


def test_only_http_is_noted() -> None:
    """Lifespan messages pass by."""
    ledger = ServedLedger(app)
    assert run(ledger, {"type": "lifespan"}) == [{"type": "lifespan.startup.complete"}]
    assert ledger.entries == []


def test_equal_books_balance() -> None:
    """The order does not matter, and a correlation id may come several times."""
    ledger = ServedLedger(app)
    for correlation_id in ("a", "b", "a"):
        run(ledger, request(correlation_id))
    assert ledger.balance([("a", 200), ("a", 200), ("b", 200)]) == []


def test_what_nobody_verified_is_named() -> None:
    """A response without a verification is a hole in the tests, one without a correlation id too."""
    ledger = ServedLedger(app)
    for correlation_id, path in (("a", "/first"), ("a", "/second"), ("", "/third")):
        run(ledger, request(correlation_id, path))
    assert ledger.balance([("a", 200)]) == [
        "served, not verified: GET /second 200 a",
        "served, not verified: GET /third 200 ",
    ]


def test_what_the_app_did_not_send_is_named() -> None:
    """Another status under the same id is a difference on both sides."""
    ledger = ServedLedger(app)
    run(ledger, request("a"))
    assert ledger.balance([("a", 500)]) == [
        "served, not verified: GET /healthz 200 a",
        "verified, not served by the app: 500 a",
    ]


def test_answers_of_the_server_below_are_expected() -> None:
    """A 431 of the HTTP server never passes the app, unless a caller says that nothing may bypass it."""
    ledger = ServedLedger(app)
    assert ledger.balance([("a", 431)]) == []
    assert ledger.balance([("a", 431)], below=()) == ["verified, not served by the app: 431 a"]
