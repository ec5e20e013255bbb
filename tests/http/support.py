"""What the tests of this folder share: task bodies, waiting for something to be seen, and raw sockets."""

from __future__ import annotations

import json
import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from orchestratord import contract
from orchestratord.testing.live import LiveApp
from orchestratord.testing.session import VerifyingSession
from orchestratord.wire.errors import STATUS

PATIENCE_S = 10.0
TOO_MUCH = 4_000_000  # bytes no answer here comes near


def task(**fields: Any) -> dict[str, Any]:
    """A valid TaskRequest for the pool `home`, with fresh ids."""
    body = {
        "task_id": str(uuid.uuid4()),
        "session_id": str(uuid.uuid4()),
        "workload": "completion",
        "model_ref": "home",
        "engine": "llamacpp",
        "ctx": 512,
        "priority": "interactive",
        "max_tokens": 5,
        "deadline_ms": 600_000,
        "prompt": "hello",
    }
    return {name: value for name, value in {**body, **fields}.items() if value is not None}


def submit(session: VerifyingSession, **fields: Any) -> str:
    """Enqueue a task and return its id."""
    body = task(**fields)
    answer = session.post("/v1/tasks", json=body)
    assert answer.status_code == 202, answer.text
    return str(body["task_id"])


def state_of(session: VerifyingSession, task_id: str) -> str:
    return str(session.get(f"/v1/tasks/{task_id}").json()["state"])


def wait_for(seen: Callable[[], Any], what: str, seconds: float = PATIENCE_S) -> Any:
    """The first true value of `seen`, asked again and again; fails after `seconds` of real time."""
    pause = threading.Event()
    for _ in range(int(seconds / 0.01)):
        if value := seen():
            return value
        pause.wait(0.01)
    raise AssertionError(f"in {seconds:g} s this did not happen: {what}")


def readers(app: LiveApp) -> int:
    """Streams the daemon holds a seat for."""
    return app.call(lambda: app.daemon.streams.open_cursors)


# -- raw sockets ---------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Answer:
    """One response as it was on the wire; header names in lower case."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        values = [value for key, value in self.headers if key == name]
        assert len(values) <= 1, f"{name} comes {len(values)} times"
        return values[0] if values else None

    def json(self) -> Any:
        return json.loads(self.body)


class RawConnection:
    """A TCP connection on which a test writes what it likes."""

    def __init__(self, url: str, *, receive_buffer: int | None = None) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        self.host = f"{parts.hostname}:{parts.port}"
        self.socket = socket.socket()
        self.socket.settimeout(PATIENCE_S)
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.connect((parts.hostname, parts.port))
        self._data = b""
        self.received = 0

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def get(self, path: str, **headers: str) -> None:
        """Send a whole, well-formed GET."""
        lines = [
            f"GET {path} HTTP/1.1",
            f"Host: {self.host}",
            *(f"{k.replace('_', '-')}: {v}" for k, v in headers.items()),
        ]
        self.send("\r\n".join([*lines, "", ""]).encode())

    def more(self) -> bytes:
        """Whatever comes next; b"" at the end of the stream."""
        try:
            data = self.socket.recv(65536)
        except ConnectionResetError:
            data = b""
        self.received += len(data)
        assert self.received < TOO_MUCH, "the daemon does not stop sending"
        self._data += data
        return data

    def until(self, mark: bytes) -> bytes:
        """Everything up to and with `mark`."""
        while mark not in self._data:
            assert self.more(), f"the connection closed before {mark!r}; there was {self._data[-200:]!r}"
        found, _, self._data = self._data.partition(mark)
        return found + mark

    def exactly(self, size: int) -> bytes:
        while len(self._data) < size:
            assert self.more(), f"the connection closed {size - len(self._data)} bytes too early"
        found, self._data = self._data[:size], self._data[size:]
        return found

    def head(self) -> tuple[int, list[tuple[str, str]]]:
        """Status and headers of the next response."""
        first, *lines = self.until(b"\r\n\r\n")[:-4].decode("latin-1").split("\r\n")
        version, status, _ = first.split(" ", 2)
        assert version == "HTTP/1.1"
        pairs = [line.partition(": ") for line in lines]
        return int(status), [(name.lower(), value) for name, _, value in pairs]

    def answer(self) -> Answer:
        """The next response with its whole body."""
        status, headers = self.head()
        fields = dict(headers)
        if fields.get("transfer-encoding") == "chunked":
            body = b"".join(self.chunks())
        else:
            body = self.exactly(int(fields.get("content-length", "0")))
        return Answer(status, headers, body)

    def chunks(self) -> Iterator[bytes]:
        """Pieces of a chunked body up to its proper end."""
        while size := int(self.until(b"\r\n"), 16):
            yield self.exactly(size)
            assert self.exactly(2) == b"\r\n"
        assert self.exactly(2) == b"\r\n"

    def rest(self) -> bytes:
        """Everything until the daemon closes the connection."""
        while self.more():
            pass
        found, self._data = self._data, b""
        return found

    def closed(self) -> bool:
        """Whether nothing more comes and the daemon has closed the connection."""
        return self.rest() == b""

    def reset(self) -> None:
        """Leave without a goodbye."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        self.socket.close()

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> RawConnection:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


@cache
def _schemas() -> tuple[Any, Any]:
    document = contract.load("data")
    schemas = (
        contract.dereference(document, document["components"]["schemas"][n]) for n in ("ErrorEnvelope", "CorrelationId")
    )
    envelope, correlation = (contract.compile_schema(schema) for schema in schemas)
    return envelope, correlation


def envelope_of(answer: Answer, status: int) -> dict[str, Any]:
    """The ErrorEnvelope an answer must be, with everything every error has."""
    envelope, correlation = _schemas()
    assert answer.status == status, answer
    assert answer.header("content-type") == "application/json"
    assert answer.header("content-length") == str(len(answer.body))
    assert correlation.is_valid(answer.header("x-correlation-id"))
    assert answer.header("location") is None
    body = answer.json()
    problems = [error.message for error in envelope.iter_errors(body)]
    assert not problems, problems
    assert STATUS[body["code"]] == status
    assert isinstance(body, dict)
    return body
