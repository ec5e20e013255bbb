"""The verified door for a tool that brings its own requests: it keeps faults instead of raising them.

It also remembers what the daemon told, so that later requests can be about things that exist.
"""

from __future__ import annotations

import io
import json
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import requests

from orchestratord.testing.session import VerifyingSession
from orchestratord.testing.verifier import ContractViolation, Verifier

STREAM_S = 1.0  # how long a stream that does not end is read
TERMINAL = ("end", "error")
PASSING = {"POOL_UNREADY", "POOL_UNAVAILABLE", "REPLICA_EXHAUSTED", "OVERLOADED", "STORAGE_UNAVAILABLE"}
KEPT = 200


@dataclass
class Live:
    """What exists on the server as far as its answers told: the newest of each kind."""

    tasks: deque[str] = field(default_factory=lambda: deque(maxlen=KEPT))
    sessions: deque[str] = field(default_factory=lambda: deque(maxlen=KEPT))
    artifacts: deque[str] = field(default_factory=lambda: deque(maxlen=KEPT))
    models: deque[str] = field(default_factory=lambda: deque(maxlen=KEPT))  # ids of the catalog
    cursors: dict[str, deque[str]] = field(default_factory=dict)
    etags: dict[str, str] = field(default_factory=dict)  # artifact: its ETag
    ends: dict[str, int] = field(default_factory=dict)  # task: id of its terminal event
    pools: list[dict[str, Any]] = field(default_factory=list)
    files: list[str] = field(default_factory=list)  # models that could be loaded

    def learn(self, operation: str, request: requests.PreparedRequest, response: requests.Response) -> None:
        """Remember what one good answer says exists."""
        try:
            told = json.loads(response.content) if response.content else {}
        except ValueError:
            return  # a stream, a page
        if operation == "createTask":
            self.tasks.append(told["task_id"])
            self.sessions.append(json.loads(request.body or b"{}")["session_id"])
        elif operation == "createArtifact":
            self.artifacts.append(told["id"])
        elif operation == "createCatalogModel":
            self.models.append(told["id"])
        elif operation == "getTask" and told["state"] in ("ended", "canceled", "failed"):
            self.ends[told["task_id"]] = told["last_event_id"]
            if "transcript_id" in told:
                self.artifacts.append(told["transcript_id"])
        elif operation == "getArtifact" and response.status_code == 200:
            self.etags[told["id"]] = response.headers["ETag"]
        elif told.get("next_cursor"):
            self.cursors.setdefault(operation, deque(maxlen=20)).append(told["next_cursor"])


@dataclass
class Books:
    """What a run has seen. Sessions of one run share them."""

    faults: list[str] = field(default_factory=list)
    answers: Counter[tuple[str, int]] = field(default_factory=Counter)
    codes: Counter[tuple[str, int, str]] = field(default_factory=Counter)
    finished_streams: int = 0
    cut_streams: int = 0
    live: Live = field(default_factory=Live)
    lock: Lock = field(default_factory=Lock)

    @property
    def requests(self) -> int:
        return sum(self.answers.values())


class _Read:
    """A response whose body was read already, for whoever wants to read it from the connection."""

    def __init__(self, raw: Any, body: bytes) -> None:
        self._raw = raw
        self._body = io.BytesIO(body)

    def read1(self, *_: Any, **__: Any) -> bytes:
        return self._body.read()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._raw, name)


class Door(VerifyingSession):
    """Every answer is read whole and judged. A fault goes into the books together with what was asked."""

    def __init__(self, base_url: str, books: Books, verifier: Verifier, token: str | None) -> None:
        super().__init__(base_url, token=token, verifier=verifier)
        self.books = books

    def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:
        """`stream` and `allow_redirects` of the caller do not count: bodies are read here, redirects never followed."""
        response = self._send(request, {"stream": True, "timeout": kwargs.get("timeout")})
        body, complete = self._read(response)
        response._content = body
        response.raw = _Read(response.raw, body)
        self._judge(request, response, body, complete)
        return response

    @staticmethod
    def _read(response: requests.Response) -> tuple[bytes, bool]:
        body = bytearray()
        streaming = response.headers.get("Content-Type", "").startswith("text/event-stream")
        give_up = time.monotonic() + STREAM_S
        try:
            for chunk in response.iter_content(chunk_size=None):
                body += chunk
                if streaming and time.monotonic() > give_up:
                    return bytes(body), False
        except requests.ConnectionError:
            if streaming:
                return bytes(body), False
            raise
        finally:
            response.close()
        return bytes(body), True

    def _judge(
        self, request: requests.PreparedRequest, response: requests.Response, body: bytes, complete: bool
    ) -> None:
        asked = f"{request.method} {request.url} {str(request.body)[:300]}"
        with self.books.lock:
            try:
                verified = self.verifier.check(request, response, body, complete=complete)
            except ContractViolation as violation:
                self.record.ledger.append((response.headers.get("X-Correlation-Id", ""), response.status_code))
                self.books.faults.append(f"{violation}\n    {asked}\n    {body[:500]!r}")
                return
            self.record.add(verified)
            status, name = response.status_code, verified.name
            self.books.answers[name, status] += 1
            if status >= 400 and name != "getReadiness":
                code = json.loads(body)["code"] if body else ""
                self.books.codes[name, status, code] += 1
                if status in (500, 502, 504) or (status == 503 and code not in PASSING):
                    self.books.faults.append(f"{name} {status} {code}\n    {asked}\n    {body[:500]!r}")
            if status == 200 and name == "streamTask":
                ended = verified.events & set(TERMINAL)
                self.books.finished_streams += bool(ended)
                self.books.cut_streams += not ended
            if 200 <= status < 300:
                self.books.live.learn(name, request, response)
