"""HTTPS servers on loopback with a certificate authority of their own: files with Range, faults, and what was asked."""

from __future__ import annotations

import hashlib
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import trustme

HOSTS = ("localhost", "127.0.0.1", "::1", "a.test", "b.test", "allowed.test")
MODEL = b"GGUF\x03\x00\x00\x00" + b"".join(hashlib.sha256(bytes([n])).digest() for n in range(250)) * 256  # 2 MB


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@lru_cache
def authority() -> trustme.CA:
    return trustme.CA()


@lru_cache
def _context(trusted: bool, hosts: tuple[str, ...]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    (authority() if trusted else trustme.CA()).issue_cert(*hosts).configure_cert(context)
    return context


def write_root(folder: Path) -> str:
    """The authority's certificate as a file."""
    path = folder / "root.pem"
    authority().cert_pem.write_to_path(str(path))
    return str(path)


@dataclass(slots=True)
class Asked:
    method: str
    target: str
    headers: dict[str, str]  # lower-case names


@dataclass(slots=True)
class Reply:
    """`cut`: close the connection after so many bytes of the body. `hold`: wait for it after `pause` bytes."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    length: bool = True
    pause: int = 0
    hold: threading.Event | None = None


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up, or do not trust us, are what the tests are about."""


Route = Callable[[Asked], Reply]


class Site:
    """`files` are served with Range and If-Range; `routes` by the path before the query come first."""

    def __init__(self, *, trusted: bool = True, hosts: tuple[str, ...] = HOSTS) -> None:
        self.files: dict[str, bytes] = {}
        self.routes: dict[str, Route] = {}
        self.cuts: list[int] = []  # for the next answers with a file
        self.ranges = self.etags = True
        self.asked: list[Asked] = []
        self.connections = 0
        self._server = _Server(("127.0.0.1", 0), self._handler())
        context = _context(trusted, hosts)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    @property
    def port(self) -> int:
        port: int = self._server.server_address[1]
        return port

    def at(self, path: str, host: str = "127.0.0.1") -> str:
        return f"https://{host}:{self.port}{path}"

    def answer(self, asked: Asked) -> Reply:
        path = asked.target.partition("?")[0]
        if path in self.routes:
            return self.routes[path](asked)
        if path in self.files:
            return self.file(asked, self.files[path])
        return Reply(404, b"not here")

    def file(self, asked: Asked, data: bytes) -> Reply:
        etag = f'"{hashlib.sha1(data).hexdigest()}"'
        headers = {"ETag": etag} if self.etags else {}
        if self.etags and asked.headers.get("if-none-match") == etag:
            return Reply(304, b"", headers)
        cut = self.cuts.pop(0) if self.cuts and asked.method == "GET" else None
        wanted = asked.headers.get("range", "")
        same = asked.headers.get("if-range", etag) == etag
        if self.ranges and wanted.startswith("bytes=") and same:
            start = int(wanted[6:].partition("-")[0])
            if start >= len(data):
                return Reply(416, b"", {"Content-Range": f"bytes */{len(data)}"})
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            return Reply(206, data[start:], headers, cut)
        return Reply(200, data, headers, cut)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        site = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                site.connections += 1
                super().setup()

            def do_GET(self) -> None:
                asked = Asked(self.command, self.path, {k.lower(): v for k, v in self.headers.items()})
                site.asked.append(asked)
                reply = site.answer(asked)
                self.send_response(reply.status)
                for name, value in reply.headers.items():
                    self.send_header(name, value.encode().decode("latin-1"))  # so that any text goes out as UTF-8
                if reply.length:
                    self.send_header("Content-Length", str(len(reply.body)))
                else:
                    self.send_header("Connection", "close")
                    self.close_connection = True
                self.end_headers()
                if self.command == "HEAD":
                    return
                if reply.hold is not None:
                    self.wfile.write(reply.body[: reply.pause])
                    reply.hold.wait(60)
                self.wfile.write(reply.body[reply.pause : reply.cut])
                if reply.cut is not None:
                    self.wfile.flush()
                    self.close_connection = True
                    with suppress(OSError):
                        self.connection.unwrap()

            do_HEAD = do_GET  # noqa: N815

            def log_message(self, *_: Any) -> None: ...

        return Handler

    def start(self) -> Site:
        self._thread.start()
        return self

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@contextmanager
def serving(**options: Any) -> Iterator[Site]:
    site = Site(**options).start()
    try:
        yield site
    finally:
        site.stop()
