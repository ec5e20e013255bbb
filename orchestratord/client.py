"""A small blocking client: what the command line, the demo and first-time users need. Standard library only.

>>> client = Client("http://127.0.0.1:8080")            # doctest: +SKIP
>>> for event in client.run("Hello", model_ref="demo"):  # doctest: +SKIP
...     print(event.data)
"""

from __future__ import annotations

import http.client
import json
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

TERMINAL = ("end", "error")
RECONNECTS = 5
PAUSE_S = 0.2  # before the first of them; doubles, so that a daemon that restarts is met again
NAMED = "X-Correlation-Id"  # every answer of a daemon has one


class Unreachable(ConnectionError):
    """No daemon answers: nobody does, or somebody else."""


class _Over(Exception):
    """A stream has nothing more to come for this reader."""


class ServerError(Exception):
    """The server answered with an ErrorEnvelope."""

    def __init__(self, status: int, envelope: dict[str, Any]) -> None:
        self.status = status
        self.envelope = envelope
        self.code = str(envelope.get("code", "INTERNAL"))
        super().__init__(f"{status} {self.code}: {envelope.get('message', '')}")


@dataclass(frozen=True, slots=True)
class Event:
    """One SSE event; `id` is None for live frames."""

    id: int | None
    name: str
    data: dict[str, Any]


class Client:
    """One server. Not thread-safe: one per thread."""

    def __init__(self, base_url: str, token: str | None = None, timeout_s: float = 60.0) -> None:
        parts = urlsplit(base_url)
        if parts.scheme != "http" or parts.hostname is None:
            raise ValueError(f"{base_url!r} is not an http://host:port address")
        self._host, self._port = parts.hostname, parts.port or 80
        self._timeout_s = timeout_s
        self._headers: dict[str, str | bytes] = {"Authorization": f"Bearer {token}".encode()} if token else {}

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """One request; the parsed JSON answer, or None when there is none. Raises ServerError, Unreachable."""
        with self._asked(method, path, body) as response:
            return _read(response)

    def submit(self, **fields: Any) -> dict[str, Any]:
        """POST /v1/tasks; ids are drawn unless given. Returns the AdmissionResponse."""
        body = {"task_id": str(uuid.uuid4()), "session_id": str(uuid.uuid4()), **fields}
        admission: dict[str, Any] = self.call("POST", "/v1/tasks", body)
        return admission

    def stream(self, task_id: str, after: int = 0) -> Iterator[Event]:
        """The task's events from the first one after `after` to the terminal one.

        A broken connection is resumed where it broke, up to five times in a row. Raises ServerError, Unreachable.
        """
        failures = 0
        while True:
            try:
                for event in self._events(task_id, after):
                    failures = 0
                    after = event.id if event.id is not None else after
                    yield event
                    if event.name in TERMINAL:
                        return
            except _Over:
                return
            except Unreachable:
                pass
            failures += 1
            if failures > RECONNECTS:
                raise Unreachable(f"the stream of task {task_id} broke {failures} times")
            threading.Event().wait(PAUSE_S * 2 ** (failures - 1))

    def cancel(self, task_id: str) -> None:
        self.call("POST", f"/v1/tasks/{quote(task_id, safe='')}/cancel")

    def task(self, task_id: str) -> dict[str, Any]:
        status: dict[str, Any] = self.call("GET", f"/v1/tasks/{quote(task_id, safe='')}")
        return status

    def pools(self) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = self.call("GET", "/v1/pools")["items"]
        return items

    def run(self, prompt: str, **fields: Any) -> Iterator[Event]:
        """Submit a completion and stream it."""
        defaults = {
            "workload": "completion",
            "engine": "llamacpp",
            "ctx": 2048,
            "max_tokens": 256,
            "priority": "interactive",
            "deadline_ms": 300_000,
        }
        admission = self.submit(**{**defaults, **fields, "prompt": prompt})
        return self.stream(admission["task_id"])

    @contextmanager
    def _asked(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> Iterator[http.client.HTTPResponse]:
        """The answer to a request. What goes wrong while it is read is Unreachable as well."""
        connection = http.client.HTTPConnection(self._host, self._port, timeout=self._timeout_s)
        data = None if body is None else json.dumps(body).encode()
        extra = {"Content-Type": "application/json"} if data is not None else {}
        try:
            connection.request(method, path, data, {**self._headers, **extra, **(headers or {})})
            response = connection.getresponse()
            if NAMED not in response.headers:
                raise Unreachable(f"what answers there, with {response.status}, is no orchestratord")
            yield response
        except Unreachable:
            raise
        except (OSError, http.client.HTTPException) as error:
            raise Unreachable(str(error) or type(error).__name__) from error
        finally:
            connection.close()

    def _events(self, task_id: str, after: int) -> Iterator[Event]:
        headers = {"Accept": "text/event-stream", **({"Last-Event-ID": str(after)} if after else {})}
        with self._asked("GET", f"/v1/tasks/{quote(task_id, safe='')}/stream", headers=headers) as response:
            if response.status != 200:
                _read(response)
                raise _Over
            fields: dict[str, str] = {}
            while line := response.readline():
                text = line.decode().rstrip("\r\n")
                name, _, value = text.partition(":")
                if text and name:
                    fields[name] = value.removeprefix(" ")
                elif not text and "data" in fields:
                    event_id = int(fields["id"]) if "id" in fields else None
                    yield Event(event_id, fields.get("event", "message"), json.loads(fields["data"]))
                    fields = {}


def _read(response: http.client.HTTPResponse) -> Any:
    text = response.read()
    parsed = json.loads(text) if text else None
    if response.status >= 400:
        raise ServerError(response.status, parsed if isinstance(parsed, dict) else {})
    return parsed
