"""G: HTTP and input."""

from __future__ import annotations

import contextlib
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from orchestratord.testing.live import LiveApp, mock_settings
from tests.http.daemon import free_port
from tests.http.support import wait_for
from tests.http.test_raw import GET, HOST, MALFORMED, POST
from tests.reliability.rows import Seen, Skipped, not_here, program, row, tests
from tests.reliability.stage import installed

SECRET = "/v1/pools"  # what an attacker wants to be asked behind the proxy's back
SUFFIX = b"GET /v1/pools HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Smuggled: 1\r\n\r\n"
SMUGGLING = {
    "CL.TE": POST + b"Content-Length: %d\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" % (5 + len(SUFFIX)) + SUFFIX,
    "TE.CL": POST
    + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n%x\r\n" % len(SUFFIX)
    + SUFFIX
    + b"\r\n0\r\n\r\n",
    "TE.TE": POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n0\r\n\r\n" + SUFFIX,
    "TE space colon": POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n" + SUFFIX,
    "TE tab": POST + b"Transfer-Encoding:\tchunked\r\n\r\n0\r\n\r\n" + SUFFIX,
    "TE vertical tab": POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n" + SUFFIX,
    "TE quoted": POST + b'Transfer-Encoding: "chunked"\r\n\r\n0\r\n\r\n' + SUFFIX,
    "TE folded": POST + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n" + SUFFIX,
    "TE identity": POST + b"Transfer-Encoding: identity\r\nContent-Length: 0\r\n\r\n" + SUFFIX,
    "TE list": POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n" + SUFFIX,
    "TE upper": POST + b"TRANSFER-ENCODING: CHUNKED\r\n\r\n0\r\n\r\n" + SUFFIX,
    "TE underscore": POST + b"Transfer_Encoding: chunked\r\nContent-Length: 0\r\n\r\n" + SUFFIX,
    "TE in 1.0": POST.replace(b"1.1", b"1.0") + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + SUFFIX,
    "CL.0": POST + b"Content-Length: %d\r\n\r\n" % len(SUFFIX) + SUFFIX,
    "CL twice": POST + b"Content-Length: 0\r\nContent-Length: %d\r\n\r\n" % len(SUFFIX) + SUFFIX,
    "CL list": POST + b"Content-Length: 0, %d\r\n\r\n" % len(SUFFIX) + SUFFIX,
    "CL leading zeros": POST + b"Content-Length: 000\r\n\r\n" + SUFFIX,
    "CL plus": POST + b"Content-Length: +0\r\n\r\n" + SUFFIX,
    "CL underscore": POST + b"Content_Length: 0\r\nContent-Length: %d\r\n\r\n" % len(SUFFIX) + SUFFIX,
    "CL on a GET": GET + HOST + b"Content-Length: %d\r\n\r\n" % len(SUFFIX) + SUFFIX,
    "chunk extension": POST + b"Transfer-Encoding: chunked\r\n\r\n0;a=b\r\n\r\n" + SUFFIX,
    "chunk extension with LF": POST + b"Transfer-Encoding: chunked\r\n\r\n2;a\n{}\r\n0\r\n\r\n" + SUFFIX,
    "chunk extension quoted": POST + b'Transfer-Encoding: chunked\r\n\r\n2;a="\r\n{}\r\n0\r\n\r\n' + SUFFIX,
    "chunk size with 0x": POST + b"Transfer-Encoding: chunked\r\n\r\n0x2\r\n{}\r\n0\r\n\r\n" + SUFFIX,
    "chunk size with blanks": POST + b"Transfer-Encoding: chunked\r\n\r\n2 \r\n{}\r\n0\r\n\r\n" + SUFFIX,
    "chunk size with underscore": POST + b"Transfer-Encoding: chunked\r\n\r\n0_2\r\n{}\r\n0\r\n\r\n" + SUFFIX,
    "chunk ended by LF": POST + b"Transfer-Encoding: chunked\r\n\r\n2\n{}\n0\n\n" + SUFFIX,
    "chunk ended by CR": POST + b"Transfer-Encoding: chunked\r\n\r\n2\r{}\r0\r\r" + SUFFIX,
    "chunk terminator lax": POST + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}XX0\r\n\r\n" + SUFFIX,
    "chunk trailer": POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\nContent-Length: 5\r\n\r\n" + SUFFIX,
    "chunk size overflow": POST + b"Transfer-Encoding: chunked\r\n\r\n10000000000000002\r\n{}\r\n0\r\n\r\n" + SUFFIX,
    "LF head": GET.replace(b"\r\n", b"\n") + HOST.replace(b"\r\n", b"\n") + b"\n" + SUFFIX,
    "CR in a value": GET + HOST + b"X-A: a\rX-B: b\r\n\r\n" + SUFFIX,
    "NUL in a value": GET + HOST + b"X-A: a\x00\r\n\r\n" + SUFFIX,
    "two hosts": GET + HOST + b"Host: evil.example\r\n\r\n" + SUFFIX,
    "absolute target": b"GET http://evil.example/v1/pools HTTP/1.1\r\n" + HOST + b"\r\n" + SUFFIX,
    "HTTP/0.9": b"GET /healthz\r\n" + SUFFIX,
    "version 1.2": GET.replace(b"1.1", b"1.2") + HOST + b"\r\n" + SUFFIX,
    "Expect": POST + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(SUFFIX) + SUFFIX,
    "Upgrade h2c": GET
    + HOST
    + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n\r\n"
    + SUFFIX,
    "Connection drops Host": GET + HOST + b"Connection: close, Host\r\n\r\n" + SUFFIX,
}
NGINX = """
daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log; worker_processes 1;
events {{ worker_connections 256; }}
http {{
  access_log off; client_body_temp_path {folder}/b; proxy_temp_path {folder}/p;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  upstream us {{ server 127.0.0.1:{port}; keepalive 4; }}
  server {{
    listen 127.0.0.1:{proxy};
    location / {{
      proxy_pass http://us; proxy_http_version 1.1; proxy_ignore_client_abort on;
      proxy_set_header Connection ""; proxy_set_header Host 127.0.0.1;
    }}
  }}
}}
"""
HAPROXY = """
defaults
  mode http
  timeout connect 5s
  timeout client 5s
  timeout server 5s
frontend f
  bind 127.0.0.1:{proxy}
  default_backend b
backend b
  http-reuse always
  server s 127.0.0.1:{port}
"""


@contextlib.contextmanager
def _proxy(kind: str, port: int) -> Iterator[int]:
    binary = installed(kind)
    with TemporaryDirectory() as folder:
        proxy = free_port()
        file = Path(folder) / "conf"
        file.write_text((NGINX if kind == "nginx" else HAPROXY).format(folder=folder, port=port, proxy=proxy))
        command = [binary, "-c", str(file)] if kind == "nginx" else [binary, "-db", "-f", str(file)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            wait_for(lambda: _listens(proxy), f"{kind} listens", 20)
            yield proxy
        finally:
            process.terminate()
            process.wait()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _say(port: int, data: bytes) -> list[int]:
    """The statuses that came back for these bytes on one connection."""
    with socket.socket() as sock:
        sock.settimeout(3)
        sock.connect(("127.0.0.1", port))
        received = b""
        with contextlib.suppress(OSError):
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            while more := sock.recv(65536):
                received += more
    if received and not received.startswith(b"HTTP/1."):
        return [0]  # a proxy that speaks HTTP/0.9 with its client
    marks = received.split(b"HTTP/1.1 ")[1:]
    return [int(mark[:3]) for mark in marks if mark[:3].isdigit()]


def _disagreements(kind: str) -> tuple[int, list[str]]:
    """Vectors by which a proxy and the daemon count the requests on a connection differently.

    A proxy that lets a vector through forwards what it takes for n requests; the daemon must serve n. So the number of
    answers that came from the daemon (they have our correlation id) is compared with what it was asked.
    """
    odd = []
    vectors = {**SMUGGLING, **MALFORMED}
    asked: list[str] = []

    with LiveApp(mock_settings()) as app:
        serve = app._server.config.loaded_app

        async def counted(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "http":
                asked.append(f"{scope['method']} {scope['path']}")
            await serve(scope, receive, send)

        app._server.config.loaded_app = counted
        with _proxy(kind, int(app.url.rpartition(":")[2])) as proxy:
            for name, data in vectors.items():
                asked.clear()
                statuses = _say(proxy, data)
                app.settle()
                served = list(asked)
                if len(served) > len([s for s in statuses if s != 100]):
                    odd.append(f"{name}: {kind} gave {statuses}, the daemon was asked {served}")
                asked.clear()
                again = _say(proxy, GET + HOST + b"\r\n")  # what was left on a kept connection would answer this
                if again != [200] or asked[-1:] != ["GET /healthz"] or any(SECRET in late for late in asked):
                    odd.append(f"{name}: the next client of {kind} got {again}, the daemon was asked {asked}")
    return len(vectors), odd


@row(
    "G1",
    "smuggling and parser vectors: raw, and behind nginx and haproxy",
    "closed or 400; the proxy and we agree",
    1,
    1,
)
def smuggling(_: int) -> Seen:
    tried, through = 0, []
    with LiveApp() as app:
        port = int(app.url.rpartition(":")[2])
        for name, data in SMUGGLING.items():
            statuses = _say(port, data)
            assert all(200 <= s < 500 or s in (100, 101) for s in statuses), (name, statuses)
            assert 101 not in statuses, name
            tried += 1
    for kind in ("nginx", "haproxy"):
        try:
            count, odd = _disagreements(kind)
        except Skipped as why:
            through.append(str(why))
            continue
        assert not odd, odd
        tried += count
        through.append(f"{kind}: {count} vectors, 0 disagreements")
    return Seen(tried, "; ".join(through))


tests("G2", "every kind of JSON and non-JSON, on every route with a body", "5xx 0", "http/test_json_grammar.py")
tests(
    "G3",
    "each limit one below, at and above; lengths that lie; a gigabyte declared and unsent",
    "413, 414, 431, 408; read past the limit <= 64 KiB and one read",
    "http/test_errors.py",
    "http/test_crowd.py",
    "http/test_raw.py",
)
tests(
    "G4",
    "content types and codings",
    "415, or read as JSON",
    "http/test_errors.py::test_json_is_json_however_it_is_spelt",
    "http/test_errors.py::test_anything_else_is_415",
    "http/test_errors.py::test_a_body_without_a_content_type_is_415",
    "http/test_errors.py::test_a_coded_body_is_415",
)
program(
    "G5", "requests made up from the contracts", "5xx 0, undocumented 0", "tests.fuzz --seed 1 --count {}", 600, 10_000
)
tests("G6", "every path x 9 methods", "405 with the whole Allow", "http/test_routes.py")
tests(
    "G7",
    "every error there is",
    "an envelope, nothing of the inside",
    "http/test_errors.py",
    "wire/test_error_table.py",
)
tests(
    "G8",
    "traceparent and tracestate of every kind",
    "a new trace, and the request succeeds",
    "tracing/test_requests.py",
)
tests("G9", "the contracts' lint", "0 findings", "contract/test_contract_lint.py")
tests(
    "G10",
    "slashes, dots, codes, absolute targets",
    "404 or 400, no redirect",
    "http/test_routes.py::test_what_no_contract_documents_is_not_served",
    "http/test_routes.py::test_an_encoded_slash_is_no_slash",
    "http/test_routes.py::test_a_target_that_is_no_path_is_refused",
)
not_here("G11", "streams go past ASGI, so nothing can hold them back; see C12")
