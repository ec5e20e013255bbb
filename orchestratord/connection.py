"""A client's connection: uvicorn's protocol with the ends it leaves loose tied up, and what is written past ASGI.

Parser errors as envelopes, limits on heads, refusals that can be read, streams that need no coroutine. Follows
uvicorn's httptools protocol closely, hence the pinned version.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

import httptools
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from orchestratord.crowd import WRITE_BUFFER, Crowd
from orchestratord.frugal import SET, Cycle, Flow, Pipeline
from orchestratord.heads import Heads, Request
from orchestratord.infra.steps import Steps
from orchestratord.middleware import correlation_id
from orchestratord.wire.errors import HttpError, internal, render
from orchestratord.wire.limits import HEAD_BYTES, HEAD_FIELDS, URL_BYTES
from orchestratord.wire.responses import WIRE, Body, Headers

HEAD_S = 10.0
PIPELINED = 16  # requests waiting behind the one being answered
NOT_HTTP = "This is not a valid HTTP/1.1 request."
STOPPED = "The daemon stopped before this request was done. Send it again."
LINGER_S = 2.0  # for a client that still sends to read its answer, before what it sends is met with a reset
LINGER_BYTES = 64 * 1024  # of what it still sends
UNPARSED_BYTES = 64 * 1024  # in a row that are part of one field, or of nothing
_ASGI: Any = {"version": "3.0", "spec_version": "2.3"}
_PLAIN = re.compile(rb"(/[A-Za-z0-9._~-]+)+")  # a URL that is a path, and says what it means
_ANSWERED: dict[str, Any] = {}  # the scope of a request whose answer needs none any more


def _nothing() -> None:
    pass


def _parts(url: bytes) -> tuple[str, bytes, bytes]:
    """Path, path as it was sent, query. Raises HttpParserError."""
    if _PLAIN.fullmatch(url):
        return url.decode("ascii"), url, b""
    parsed = httptools.parse_url(url)
    raw = parsed.path
    if raw is None or not raw.isascii():
        raise httptools.HttpParserInvalidURLError("no path, or one that is no text")
    path = raw.decode("ascii")
    return (unquote(path) if "%" in path else path), raw, parsed.query or b""


def _named(error: HttpError, headers: Headers) -> HttpError:
    """With the correlation id of the request that brought these headers."""
    error.headers.append((b"x-correlation-id", correlation_id(headers)))
    return error


class Outlet:
    """A connection's transport as uvicorn's cycles see it: closing it does not cost the client its answer."""

    __slots__ = ("close", "is_closing", "write")

    def __init__(self, transport: asyncio.Transport, close: Callable[[], None]) -> None:
        self.write = transport.write
        self.is_closing = transport.is_closing
        self.close = close


class Protocol(HttpToolsProtocol):
    """One client connection. What never reaches the app is still answered with an ErrorEnvelope, in its turn."""

    __slots__ = (  # beside what uvicorn keeps: no more names than share their keys, or each would have them all
        "_bound",
        "_fresh",
        "_head_size",
        "_head_timer",
        "_idle_since",
        "_lingering",
        "_refused",
        "_unparsed",
        "_working",
    )

    crowd: Crowd  # the server's, as `heads`, and where requests go; see make_server
    heads: Heads
    entry: Any
    parser: Any  # none while a stream is all there is

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=WRITE_BUFFER)
        self.flow = Flow(transport)
        self.pipeline = Pipeline()  # type: ignore[assignment]
        self._refused: HttpError | None = None  # nothing more is read; this is the last answer
        self._working: Cycle | None = None  # uvicorn's `cycle` is the newest, perhaps still queued
        self._head_size = 0  # 0 outside of a head
        self._head_timer: asyncio.TimerHandle | None = None
        self._unparsed = 0  # bytes read since the parser last told of something
        self._bound: Body | None = None  # what the answer goes on with
        self._fresh: Cycle | None = None  # to be begun when all that was read has been parsed
        self._idle_since = 0.0
        self._lingering: int | None = None  # bytes that came since the last answer; None while more are wanted
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX:
            self.crowd.prepare(sock)
        full = self.crowd.enter(self, self.client[0] if self.client else "", self.loop.time())
        if full is not None:
            self._refuse(HttpError("OVERLOADED", full, retriable=True))
        else:
            self.crowd.idle(self, self.loop.time())
            self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._unset_keepalive_if_required()
        working = self._working
        if working is not None:
            working.body = bytearray()  # what is lost is a circle and lives until the collector comes by
            if not working.response_complete:
                working.disconnected = True
                working.message_event.set()
        super().connection_lost(exc)
        self.crowd.leave(self)
        if self._bound is not None:
            self._bound.lost()
            self._bound = None
            if working is not None:
                working.on_response = _nothing

    def data_received(self, data: bytes) -> None:
        if self._lingering is not None:
            self._lingering += len(data)
            if self._lingering > LINGER_BYTES:
                self.transport.pause_reading()
        elif self._refused is None and not self.transport.is_closing():
            alone = not self._head_size and self._idle  # before and behind it there is nothing yet
            if alone and (known := self.heads.read(data)) is not None:
                self._take_known(known, data)
            else:
                self._read(data)
                fresh = self._fresh
                if alone and fresh is not None and fresh.keep_alive and not (fresh.more_body or self._head_size):
                    self.heads.keep(data, self.headers, len(fresh.body))
            if self._fresh is not None:
                fresh, self._fresh = self._fresh, None
                if not fresh.disconnected:  # else it has been refused
                    self._begin(fresh)

    def _take_known(self, request: Request, data: bytes) -> None:
        self._stop_timer()
        self.crowd.busy(self)
        self._unparsed = 0
        self.headers, self.expect_100_continue = request.headers, False
        self._take(request.method, (request.url.decode("ascii"), request.url, b""), "1.1", keep_alive=True)
        self.cycle.body += data[request.body :]
        self.cycle.more_body = False
        self.cycle.message_event.set()

    def _read(self, data: bytes) -> None:
        if self.parser is None:
            self.parser = httptools.HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
        begun = self._head_size
        self._unparsed += len(data)
        self._parse(data)
        if self._unparsed > UNPARSED_BYTES:  # the parser keeps a field until it has all of it
            self._refuse(HttpError("HEADERS_TOO_LARGE", f"A field may have at most {HEAD_BYTES} bytes."))
        if self._head_size and self._refused is None and not (begun and self._head_timer):
            self._expect_head()  # this head has begun just now

    def _parse(self, data: bytes) -> None:
        while data and self._refused is None:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserError as error:
                fault = error.__context__ if isinstance(error, httptools.HttpParserCallbackError) else None
                if fault is None or isinstance(fault, httptools.HttpParserError):
                    self._refuse(HttpError("INVALID_PARAMS", NOT_HTTP))
                else:  # ours, raised within the parser
                    self.loop.call_exception_handler({"message": "reading a request failed", "exception": fault})
                    self._refuse(internal())
            except httptools.HttpParserUpgrade as upgrade:  # to nothing that is served here: what follows is HTTP
                data = data[upgrade.args[0] :]

    def eof_received(self) -> None:
        if self._lingering is not None:
            self.transport.close()

    # -- the head, piece by piece --------------------------------------------------------------------------
    def _expect_head(self) -> None:
        self._stop_timer()
        self._head_timer = self.loop.call_later(HEAD_S, self._head_late)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_late(self) -> None:
        """Nothing sent at all is an idle connection and just closes; half a head is told why."""
        if self._head_size:
            self._refuse(HttpError("REQUEST_TIMEOUT", f"The request head took longer than {HEAD_S:g} s."))
        else:
            self.transport.close()

    def evict(self) -> None:
        if self._head_size:
            self._refuse(
                HttpError("REQUEST_TIMEOUT", "The request head was not complete when others needed its place.")
            )
        else:
            self.transport.close()

    def on_message_begin(self) -> None:
        self.url = b""
        self.expect_100_continue = False
        self.headers = []
        self._head_size = 1

    def on_url(self, url: bytes) -> None:
        self.url = self.url + url if self.url else url
        if len(self.url) > URL_BYTES:
            self._refuse(HttpError("URI_TOO_LONG", f"A URL may have at most {URL_BYTES} bytes."))

    def on_header(self, name: bytes, value: bytes) -> None:
        self._unparsed = 0
        if not self._head_size:
            return  # behind a body: nothing here asks for one, and it must not pass for a field of the head
        self._head_size = size = self._head_size + len(name) + len(value) + 4
        headers = self.headers
        if size > HEAD_BYTES or len(headers) >= HEAD_FIELDS:
            limits = f"at most {HEAD_BYTES} bytes and {HEAD_FIELDS} fields"
            self._refuse(HttpError("HEADERS_TOO_LARGE", f"A request head may have {limits}."))
        else:
            name = name.lower()
            if name == b"expect" and value.lower() == b"100-continue":
                self.expect_100_continue = True
            headers.append((name, value.rstrip(b" \t")))  # RFC 9110 5.5; the parser cuts only what is in front

    def on_headers_complete(self) -> None:
        self._stop_timer()
        self.crowd.busy(self)
        self._unparsed = 0
        version = self.parser.get_http_version()
        if version not in ("1.0", "1.1"):
            self._refuse(HttpError("INVALID_PARAMS", NOT_HTTP))
        if self._refused is None:
            keep_alive = version != "1.0" and self.parser.should_keep_alive()
            self._take(self.parser.get_method().decode("ascii"), _parts(self.url), version, keep_alive=keep_alive)
            if len(self.pipeline) > PIPELINED:
                self._refuse(HttpError("OVERLOADED", "Too many requests at once on this connection.", retriable=True))
            elif self.pipeline:
                self.flow.resume_reading()  # else nobody would notice that the client has left
        self._head_size = 0

    def _take(self, method: str, parts: tuple[str, bytes, bytes], version: str, *, keep_alive: bool) -> None:
        """A request whose head is complete: begun after what was read with it, or behind those before it."""
        path, raw_path, query = parts
        self.scope = {
            "type": "http",
            "asgi": _ASGI,
            "http_version": version,
            "server": self.server,
            "client": self.client,
            "scheme": self.scheme,  # type: ignore[typeddict-item]
            "method": method,
            "root_path": "",
            "path": path,
            "raw_path": raw_path,
            "query_string": query,
            "headers": self.headers,
            "state": self.app_state.copy(),
            "extensions": {WIRE: self},  # type: ignore[dict-item]
        }
        before = self.cycle
        self.cycle = cycle = Cycle(self, self.scope, keep_alive)
        if before is None or before.response_complete:
            self._working = self._fresh = cycle
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft(cycle)  # type: ignore[arg-type]

    def on_body(self, body: bytes) -> None:
        self._unparsed = 0
        if self._refused is None and not self.cycle.response_complete:
            self.cycle.body += body
            if len(self.cycle.body) > HIGH_WATER_LIMIT:
                self.flow.pause_reading()
            self.cycle.message_event.set()

    def on_message_complete(self) -> None:
        if self._refused is None and not self.cycle.response_complete:
            self.cycle.more_body = False
            self.cycle.message_event.set()

    def _begin(self, cycle: Cycle, *, soon: bool = False) -> None:
        self._working = cycle
        cycle.transport = Outlet(self.transport, self._close)  # type: ignore[assignment]
        Steps(self._serve(cycle), self.loop, self.tasks).begin(soon=soon)

    async def _serve(self, cycle: Cycle) -> None:
        """`RequestResponseCycle.run_asgi`, but an answer may go on when the app has returned (`bind`)."""
        try:
            await self.entry(cycle.scope, cycle.receive, cycle.send)
        except BaseException as error:  # the app has told of it
            if cycle.response_started:
                self._close()
            elif not cycle.disconnected:
                cycle.response_complete = True
                why = internal() if isinstance(error, Exception) else HttpError("OVERLOADED", STOPPED, retriable=True)
                self._answer(_named(why, list(cycle.scope["headers"])))
        else:
            if self._bound is None and not cycle.response_complete and not cycle.disconnected:
                self._close()
        finally:
            if self._bound is None:
                cycle.on_response = _nothing

    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        if self.unread:
            self._close()
            return
        self.flow.resume_reading()
        if self.pipeline:
            following: Any = self.pipeline.pop()
            if self._refused is None or not following.more_body:  # else the rest of its body will never come
                # Whoever wrote the end of the last answer may be in the midst of something.
                self._begin(following, soon=True)
                return
        self._idle_since = now = self.loop.time()
        self.crowd.idle(self, now)
        if self.timeout_keep_alive_task is None:
            self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self._still_idle)
        if self._refused is not None:
            self._answer(self._refused)

    def _still_idle(self) -> None:
        """One timer for all the requests of a connection: set for the first, it looks how long ago the last was."""
        self.timeout_keep_alive_task = None
        if not self._idle or self._head_size or self.transport.is_closing():
            return
        left = self._idle_since + self.timeout_keep_alive - self.loop.time()
        if left > 0:
            self.timeout_keep_alive_task = self.loop.call_later(left, self._still_idle)
        else:
            self.transport.close()

    @property
    def unread(self) -> bool:
        """The body of the request being answered has not come to its end: what follows is no request."""
        return self._working is not None and self._working.more_body

    # -- the body of a stream, past ASGI (wire.responses.Wire) ----------------------------------------------
    @property
    def full(self) -> bool:
        return self.flow.write_paused

    def whole(self) -> bytearray | None:
        working = self._working
        if working is None or working.more_body or working.disconnected:
            return None
        body, working.body = working.body, bytearray()  # who asks has it now, and decides for how long
        return body

    def reply(self, status: int, headers: Headers, body: bytes) -> None:
        working = self._working
        assert working is not None
        if working.disconnected:
            return
        head = self._head(working, status, headers)
        working.response_complete = True
        working.body = bytearray()  # the connection may be kept for long
        self.transport.write(head if working.scope["method"] == "HEAD" else head + body)
        working.message_event.set()
        if not working.keep_alive:
            self._close()
        working.on_response()

    def start(self, status: int, headers: Headers) -> None:
        working = self._working
        assert working is not None
        if working.disconnected:
            return
        if working.scope["http_version"] == "1.1":
            working.chunked_encoding = True
            headers = [*headers, (b"transfer-encoding", b"chunked")]
        self.transport.write(self._head(working, status, headers))

    def _head(self, working: Cycle, status: int, headers: Headers) -> bytes:
        """Of an answer, which begins with it. Raises ValueError for a header with a line break in it."""
        if working.more_body:
            working.keep_alive = False
        lines = [b"%b: %b\r\n" % header for header in (*self.server_state.default_headers, *headers)]
        if not working.keep_alive:
            lines.append(b"connection: close\r\n")
        fields = b"".join(lines)
        if fields.count(b"\n") != len(lines) or fields.count(b"\r") != len(lines):
            raise ValueError("a header with a line break in it")
        working.response_started = True
        return b"%b%b\r\n" % (STATUS_LINE[status], fields)

    def bind(self, body: Body) -> Callable[[bytes], object]:
        write, working = self.transport.write, self._working
        assert working is not None
        if working.disconnected or self.transport.is_closing():  # gone, or refused meanwhile: nothing can be written
            body.lost()
            return write
        self._bound = body
        # Nobody needs the request any more, and a stream may last for long.
        working.scope = _ANSWERED  # type: ignore[assignment]
        working.message_event = SET
        working.transport = None  # type: ignore[assignment]
        if working is self.cycle and not self._head_size:  # what it keeps is not of the next request
            self.scope = _ANSWERED  # type: ignore[assignment]
            self.headers, self.url = [], b""
            if not working.more_body:
                self.parser = None  # made anew for what may follow
        self.flow.resume_reading()  # else nobody would notice that the client has left

        def write_plain(data: bytes) -> None:
            try:
                write(data)
            except Exception as fault:
                self.abort(fault)
                body.lost()

        def write_chunk(data: bytes) -> None:
            try:
                write(b"%x\r\n%b\r\n" % (len(data), data))
            except Exception as fault:  # of this reader alone: the task and its others know nothing of it
                self.abort(fault)
                body.lost()

        return write_chunk if working.chunked_encoding else write_plain

    def end(self) -> None:
        working = self._working
        assert working is not None
        self._bound = None
        if working.chunked_encoding:
            self.transport.write(b"0\r\n\r\n")
        working.response_complete = True
        if not working.keep_alive:
            self._close()
        working.on_response()
        working.on_response = _nothing  # no circle is left, as uvicorn does it

    def abort(self, fault: Exception | None = None) -> None:
        if fault is not None:
            self.loop.call_exception_handler({"message": "writing a stream failed", "exception": fault})
        self.transport.abort()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._bound is not None:
            self._bound.filled()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._bound is not None:
            self._bound.drained()

    # -- answers of our own --------------------------------------------------------------------------------
    def send_400_response(self, msg: str) -> None:
        self._refuse(HttpError("INVALID_PARAMS", NOT_HTTP))

    @property
    def _idle(self) -> bool:
        return self._working is None or (self._working.response_complete and not self.pipeline)

    def _refuse(self, error: HttpError) -> None:
        """Read nothing more; answer when everything asked before has been answered."""
        if self._refused is None:
            self._refused = error
            self._stop_timer()
            _named(error, self.headers if self._head_size else [])  # of this request, as far as its head came
            working = self._working
            if working is not None and working.more_body and not working.response_started:
                working.disconnected = True  # the rest of its body will never come: this is its answer
                working.message_event.set()
                self._answer(error)
            elif self._idle:
                self._answer(error)

    def _answer(self, error: HttpError) -> None:
        if self.transport.is_closing():
            return
        status, headers, body = render(error)
        headers += [*self.server_state.default_headers, (b"connection", b"close")]
        lines = [STATUS_LINE[status], *(b"%b: %b\r\n" % header for header in headers), b"\r\n", body]
        self.transport.write(b"".join(lines))
        self._close(reading=True)

    def _close(self, *, reading: bool = False) -> None:
        """Close, once the client has had its answer: a reset for bytes nobody reads can overtake it."""
        if self._lingering is not None or self.transport.is_closing():
            return
        if not (reading or self.unread) or not self.crowd.part(self):
            self.transport.close()
            return
        self._lingering = 0
        self._stop_timer()
        self._unset_keepalive_if_required()
        self.pipeline.clear()
        self.transport.write_eof()
        self.flow.resume_reading()
        self.loop.call_later(LINGER_S, self.transport.close)
