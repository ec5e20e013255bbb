"""The only HTTP door of tests: every answer that comes through it is verified when its body is complete.

session = VerifyingSession("http://127.0.0.1:8080", token="secret")
session.post("/v1/tasks", json=task)
with session.events(task_id) as events:
    text = "".join(event.data["t"] for event in events if event.name == "token")
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import requests
from requests.structures import CaseInsensitiveDict

from orchestratord.testing.frames import Frame as Event
from orchestratord.testing.frames import Malformed, parse_frame
from orchestratord.testing.verifier import Verified, Verifier

__all__ = ["Event", "EventStream", "Record", "Stream", "VerifyingSession"]


@dataclass(slots=True, eq=False)
class Record:
    """What verified exchanges have shown. Sessions may share one, also across threads."""

    ledger: list[tuple[str, int]] = field(default_factory=list)  # (correlation id, status)
    coverage: set[tuple[str, int]] = field(default_factory=set)  # (operation or shared response, status)
    seen_headers: set[tuple[str, str]] = field(default_factory=set)
    seen_events: set[tuple[str, str]] = field(default_factory=set)
    _lock: Lock = field(default_factory=Lock, init=False, repr=False)

    def add(self, verified: Verified) -> None:
        with self._lock:
            self.ledger.append((verified.correlation_id, verified.status))
            self.coverage.add((verified.name, verified.status))
            self.seen_headers |= {(verified.name, header) for header in verified.headers}
            self.seen_events |= {(verified.name, event) for event in verified.events}


class VerifyingSession(requests.Session):
    """A session against one daemon. Raises ContractViolation from the call that got a wrong answer.

    Paths are relative to `base_url`. Redirects, proxies, .netrc and compression are off: what the daemon sends is what
    is judged. Bodies that come piece by piece are read through `open` and `events`.
    """

    def __init__(
        self,
        base_url: str,
        token: str | None = None,
        verifier: Verifier | None = None,
        timeout: tuple[float, float] = (2, 10),
        record: Record | None = None,
    ) -> None:
        super().__init__()
        self.base_url = base_url.rstrip("/")
        self.verifier = verifier or Verifier()
        self.timeout = timeout
        self.record = record or Record()
        self.trust_env = False
        self.headers["Accept-Encoding"] = "identity"
        if token is not None:
            self.headers["Authorization"] = f"Bearer {token}".encode()

    @property
    def ledger(self) -> list[tuple[str, int]]:
        return self.record.ledger

    @property
    def coverage(self) -> set[tuple[str, int]]:
        return self.record.coverage

    @property
    def seen_headers(self) -> set[tuple[str, str]]:
        return self.record.seen_headers

    @property
    def seen_events(self) -> set[tuple[str, str]]:
        return self.record.seen_events

    def url(self, path: str) -> str:
        return self.base_url + path if path.startswith("/") else path

    def request(self, method: str | bytes, url: str | bytes, *args: Any, **kwargs: Any) -> requests.Response:
        target = url.decode() if isinstance(url, bytes) else url
        return super().request(method, self.url(target), *args, **kwargs)

    def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:
        if kwargs.get("stream"):
            raise TypeError("a body that comes piece by piece is read through open() or events()")
        response = self._send(request, kwargs)
        self.verify_exchange(response, response.content, complete=True)
        return response

    def _send(self, request: requests.PreparedRequest, options: dict[str, Any]) -> requests.Response:
        timeout = options.get("timeout") or self.timeout
        return super().send(request, **{**options, "allow_redirects": False, "timeout": timeout})

    def open(
        self, method: str, path: str, *, cut: bool = False, timeout: tuple[float, float] | None = None, **kwargs: Any
    ) -> Stream:
        """Ask, and read the body piece by piece.

        cut: the daemon may go away, so an end at any point is none of its faults.
        """
        request = self.prepare_request(requests.Request(method, self.url(path), **kwargs))
        return Stream(self, self._send(request, {"stream": True, "timeout": timeout}), cut)

    def events(
        self,
        task_id: str,
        *,
        last_event_id: str | int | None = None,
        after: str | int | None = None,
        headers: Mapping[str, str] | None = None,
        cut: bool = False,
        timeout: tuple[float, float] | None = None,
    ) -> EventStream:
        """Follow a task. An answer other than 200 has no events; it is in `.response`, verified."""
        sent = dict(headers or {})
        if last_event_id is not None:
            sent["Last-Event-ID"] = str(last_event_id)
        params = None if after is None else {"after": str(after)}
        path = f"/v1/tasks/{task_id}/stream"
        return EventStream(self.open("GET", path, headers=sent, params=params, cut=cut, timeout=timeout))

    def verify_exchange(self, response: requests.Response, body: bytes, *, complete: bool) -> None:
        """Judge and record. Raises ContractViolation."""
        self.record.add(self.verifier.check(response.request, response, body, complete=complete))


class Stream:
    """Iterator over the pieces of one body. Verified once: whole when it ends, as far as it got when it is closed."""

    def __init__(self, session: VerifyingSession, response: requests.Response, cut: bool) -> None:
        self.response = response
        self.body = bytearray()
        self._session = session
        self._cut = cut
        self._open = True
        self._chunks: Iterator[bytes] = response.iter_content(chunk_size=None)

    @property
    def status(self) -> int:
        return self.response.status_code

    @property
    def headers(self) -> CaseInsensitiveDict[str]:
        return self.response.headers

    @property
    def correlation_id(self) -> str:
        return self.response.headers["X-Correlation-Id"]

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if not self._open:
            raise StopIteration
        try:
            chunk = next(self._chunks)
        except StopIteration:
            self._finish(complete=not self._cut)
            raise
        except requests.RequestException as error:
            self._finish(complete=False)
            if self._cut and isinstance(error, requests.exceptions.ChunkedEncodingError):
                raise StopIteration from error
            raise
        self.body += chunk
        return chunk

    def read(self) -> bytes:
        """The rest of the body."""
        return b"".join(self)

    def close(self) -> None:
        """Leave. Idempotent."""
        self._finish(complete=False)

    def _finish(self, *, complete: bool) -> None:
        if not self._open:
            return
        self._open = False
        self.response.close()
        self.response._content = bytes(self.body)
        self._session.verify_exchange(self.response, bytes(self.body), complete=complete)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class EventStream:
    """Iterator over the events of one stream, as they arrive. Can be left and taken up again until it is closed."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        if stream.status != 200:
            stream.read()
        self._events = self._read()

    @property
    def response(self) -> requests.Response:
        return self._stream.response

    @property
    def status(self) -> int:
        return self._stream.status

    @property
    def headers(self) -> CaseInsensitiveDict[str]:
        return self._stream.headers

    @property
    def correlation_id(self) -> str:
        return self._stream.correlation_id

    @property
    def raw(self) -> bytes:
        """Every byte of the body so far, comments included."""
        return bytes(self._stream.body)

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        return next(self._events)

    def _read(self) -> Iterator[Event]:
        pending = b""
        for chunk in self._stream:
            *blocks, pending = (pending + chunk).split(b"\n\n")
            for block in blocks:
                try:
                    event = parse_frame(block + b"\n\n")
                except Malformed:
                    self.close()  # the verifier says what is wrong
                    raise
                if event is not None:
                    yield event

    def close(self) -> None:
        """Leave; the daemon sees the connection close. Idempotent."""
        self._stream.close()

    def __enter__(self) -> EventStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
