"""One HTTP/1.1 connection to an engine, at the level of bytes: a request goes out, a reply comes back.

httptools parses. What a read brings of a body goes to the reader of the reply in that very call: no task, queue or
future stands between the socket and the task's log. An engine is not trusted: whatever it sends that is no reply, or
too much of one, ends the connection and becomes an `EngineError`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

import httptools

from orchestratord.ports import EngineError

HEAD_BYTES = 64 * 1024  # of all header fields, trailers included
IDLE_BYTES = 128 * 1024  # read in a row without a header field or a byte of a body coming of it
HIDDEN = b"[redacted]"  # in place of credentials, should an engine repeat them
AHEAD_BYTES = 256 * 1024  # of a body nobody reads yet: then the engine has to wait
PLAIN_BYTES = 4096  # of a read that may be plain

Sink = Callable[[bytes], bool]

# What engines send nearly always: a read that is one chunk that is one event of one line. How such a read begins, by
# its size: noted when httptools had one.
_plain: dict[int, bytes] = {}
_PLAIN_END = b"\n\n\r\n"
LF, CR = b"\n\r"  # as numbers: `in` looks for a number at once, and raises an error to itself for bytes


class Reply:
    """A reply whose head has arrived and whose body may still be coming. Its body is read once.

    status: int. headers: by lower-case name; fields of the same name are joined by commas.
    """

    __slots__ = (  # there is one for each open stream
        "_connection",
        "_error",
        "_head",
        "_loop",
        "_over",
        "_parts",
        "_secrets",
        "_sink",
        "_where",
        "begun",
        "complete",
        "event",
        "headers",
        "satisfied",
        "status",
    )

    def __init__(
        self,
        connection: Connection,
        loop: asyncio.AbstractEventLoop,
        where: str,
        secrets: tuple[bytes, ...],
        parts: list[bytes],
    ) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.begun = False  # a byte of it has come
        self.complete = False
        self.satisfied = False  # the reader has what it wanted: nothing but the end of the body is still to come
        self._connection = connection
        self._loop = loop
        self._where = where
        self._secrets = secrets
        self._parts = parts  # of the body, not handed on yet
        self._error: EngineError | None = None
        self._sink: Sink | None = None
        self.event: Sink | None = None  # see `each`
        self._head: asyncio.Future[None] = loop.create_future()
        self._over: asyncio.Future[None] | None = None

    # -- for the reader ------------------------------------------------------------------------------------
    async def head(self) -> None:
        """Return once status and headers are there. Raises EngineError."""
        await self._head

    async def each(self, sink: Sink) -> None:
        """Hand `sink` what each read brings of the body, in the call that read it, until the body is complete or
        `sink` returns False. Raises EngineError if it is cut short, and whatever `sink` raises.

        While `sink` leaves something in `event`, that is offered the data of a read that is nothing but one event of
        one line. It returns True for what it took, False for what it left as it was: then `sink` gets the read.
        """
        self.headers.clear()  # nobody asks for them any more, and a stream may last
        self._sink = sink
        self._over = self._loop.create_future()
        self._connection.resume()
        self.forward()
        try:
            await self._over
        finally:
            self._sink = self.event = None
            self._connection.careful()

    async def body(self, max_bytes: int, *, whole: bool = True) -> bytes:
        """The body, our credentials hidden in it. Beyond `max_bytes` it raises EngineError(protocol), or where it need
        not be `whole` leaves the rest."""
        body = bytearray()

        def take(data: bytes) -> bool:
            body.extend(data)
            if len(body) <= max_bytes:
                return True
            if whole:
                raise EngineError("protocol", f"{self._where}: a reply of more than {max_bytes} bytes")
            return False

        await self.each(take)
        for secret in self._secrets:
            body = body.replace(secret, HIDDEN)
        return bytes(body)

    # -- for the connection --------------------------------------------------------------------------------
    def arrived(self) -> None:
        if not self._head.done():
            self._head.set_result(None)

    def forward(self) -> None:
        """A read has been parsed: hand on what it brought."""
        sink, parts = self._sink, self._parts
        if sink is None:
            if parts and sum(map(len, parts)) > AHEAD_BYTES:
                self._connection.pause()
            return
        if parts:
            data = parts[0] if len(parts) == 1 else b"".join(parts)
            parts.clear()
            try:
                if not sink(data):
                    self.settle(None)
                    return
            except Exception as error:  # the reader's own: it comes out of `each`, where the reader waits
                self.settle(error)
                return
        if self._error is not None:
            self.settle(self._error)
        elif self.complete:
            self.settle(None)

    def settle(self, error: Exception | None) -> None:
        """The reader gets no more."""
        self._sink = self.event = None
        if self._over is not None and not self._over.done():
            if error is None:
                self._over.set_result(None)
            else:
                self._over.set_exception(error)

    def fail(self, error: EngineError) -> None:
        """No more of it will come. What came before is handed over first."""
        if self.complete or self._error is not None:
            return
        self._error = error
        if not self._head.done():
            self._head.set_exception(error)
            self._head.exception()  # whoever asked may be gone
        self.forward()


class Connection(asyncio.Protocol):
    """A connection that serves one request after the other. `ask` only while it is `idle`. `lost`: called with it once
    it is closed."""

    __slots__ = (  # there is one for each open stream
        "_clean",
        "_event",
        "_fruitless",
        "_good",
        "_head_size",
        "_interim",
        "_keep_alive",
        "_loop",
        "_lost",
        "_parser",
        "_parts",
        "_paused",
        "_reply",
        "_secrets",
        "_transport",
        "_until_close",
        "_where",
        "idle_since",
        "on_body",
        "streamed",
        "used",
    )

    _transport: asyncio.Transport

    def __init__(self, where: str, secrets: tuple[bytes, ...], lost: Callable[[Connection], object]) -> None:
        self._where = where
        self._secrets = secrets
        self._loop = asyncio.get_running_loop()
        self._parts: list[bytes] = []  # of the reply's body, not handed on yet
        self._good: int | None = None  # so many of them belong to the reply; None: all
        self.on_body = self._parts.append  # httptools calls it
        self._parser = httptools.HttpResponseParser(self)
        self._reply: Reply | None = None
        self._until_close = False  # the body ends where the connection does
        self._interim = self._keep_alive = False
        self._head_size = self._fruitless = 0
        self._clean = True  # nothing came that nobody had asked for
        self._event: Sink | None = None  # of the reply, while the parser stands between two chunks
        self._paused = False
        self.used = self.streamed = False  # a request was answered on it; the last one with a stream
        self.idle_since = 0.0
        self._lost = lost

    # -- for the pool --------------------------------------------------------------------------------------
    @property
    def idle(self) -> bool:
        """Whether another request may go out on it."""
        reply = self._reply
        free = reply is None or (reply.complete and self._keep_alive)
        return self._clean and free and not self._transport.is_closing()

    @property
    def ending(self) -> bool:
        """Whether a body is still coming."""
        return self._reply is not None and not self._reply.complete

    def ask(self, request: bytes) -> Reply:
        """Send a request; the reply is on its way."""
        self._parts.clear()
        self._reply = reply = Reply(self, self._loop, self._where, self._secrets, self._parts)
        self._head_size = self._fruitless = 0
        self._until_close = self._interim = False
        self._event = None
        self._transport.write(request)
        return reply

    def abort(self) -> None:
        """Close it now. Unsent bytes are dropped: an engine that does not read must not hold the socket open."""
        self._until_close = False  # a body that we cut is not complete
        self._transport.abort()

    def pause(self) -> None:
        if not self._paused and not self._transport.is_closing():
            self._paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        if self._paused and not self._transport.is_closing():
            self._paused = False
            self._transport.resume_reading()

    # -- asyncio -------------------------------------------------------------------------------------------
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is not a subclass

    def data_received(self, data: bytes) -> None:
        event = self._event
        if event is not None:
            # One function for nearly every token: the parser need not see a chunk that begins and ends with its read.
            head = _plain.get(len(data))
            if head is not None and data.startswith(head) and data.endswith(_PLAIN_END):
                line = data[len(head) : -4]
                try:
                    if LF not in line and CR not in line and event(line):
                        return
                except Exception as error:  # as in `Reply.forward`
                    assert self._reply is not None
                    self._reply.settle(error)
            self._event = None
        self._parse(data)

    def _parse(self, data: bytes) -> None:
        reply = self._reply
        if reply is None or reply.complete:
            self._clean = False  # it would pass for the answer to the next request
            self._transport.abort()
            return
        reply.begun = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._broken("the reply changes the protocol")
        except httptools.HttpParserError as error:
            given = error.__context__
            self._broken(str(given) if isinstance(given, _Refused) else "the reply is not valid HTTP")
        if self._good is not None:
            del self._parts[self._good :]
        if self._parts:
            self._fruitless = 0
        else:
            self._fruitless += len(data)
            if self._fruitless > IDLE_BYTES and self._clean:
                self._broken("the reply is not valid HTTP")
        between = _between(data, self._parts)
        reply.forward()
        if between and self._clean:
            self._event = reply.event

    def careful(self) -> None:
        """The parser sees everything from now on."""
        self._event = None

    def connection_lost(self, exc: Exception | None) -> None:
        reply, self._reply = self._reply, None
        if reply is not None and not reply.complete:
            if self._until_close and exc is None:
                reply.complete = True
                reply.forward()
            else:
                within = "within the reply" if reply.begun else "without a reply"
                reply.fail(EngineError("lost", f"{self._where}: the connection closed {within}"))
        self._lost(self)

    # -- httptools -----------------------------------------------------------------------------------------
    def on_message_begin(self) -> None:
        if self._reply is None or self._reply.complete:
            self._clean = False
            self._good = len(self._parts) if self._good is None else self._good

    def on_header(self, name: bytes, value: bytes) -> None:
        reply = self._reply
        assert reply is not None
        self._head_size += len(name) + len(value) + 4
        if self._head_size > HEAD_BYTES:
            raise _Refused(f"the head of the reply is longer than {HEAD_BYTES} bytes")
        self._fruitless = 0
        if self._clean and not reply.complete:
            key, text = name.decode("latin-1").lower(), value.decode("latin-1")
            reply.headers[key] = f"{reply.headers[key]}, {text}" if key in reply.headers else text

    def on_headers_complete(self) -> None:
        reply = self._reply
        assert reply is not None
        if not self._clean or reply.complete:
            return
        status = self._parser.get_status_code()
        self._interim = 100 <= status < 200
        if not self._interim:
            self._until_close = not reply.headers.keys() & {"content-length", "transfer-encoding"}
            self._keep_alive = self._parser.should_keep_alive()
            reply.status = status
            reply.arrived()

    def on_message_complete(self) -> None:
        reply = self._reply
        assert reply is not None
        if self._interim:
            reply.headers.clear()
        else:
            reply.complete = True

    def _broken(self, why: str) -> None:
        assert self._reply is not None
        self._clean = False
        self._reply.fail(EngineError("protocol", f"{self._where}: {why}"))
        self._transport.abort()


def _between(data: bytes, parts: list[bytes]) -> bool:
    """Whether the parser stands between two chunks behind a read of which it made `parts`, the last one an event's end:
    it has taken the line's end behind that for the chunk's."""
    if not data.endswith(_PLAIN_END) or not parts or not data.endswith(b"%b\r\n" % parts[-1]):
        return False
    if len(parts) == 1 and len(data) <= PLAIN_BYTES:
        _note(data, parts[0])
    return True


def _note(data: bytes, body: bytes) -> None:
    """Learn how a read begins that is nothing but `body` as one chunk."""
    size = b"%x" % len(body)
    if body.startswith(b"data: ") and data[: len(size)].lower() == size and data[len(size) :] == b"\r\n%b\r\n" % body:
        _plain[len(data)] = data[: len(size) + 8]


class _Refused(Exception):
    """A reply that goes beyond our limits."""


def head(method: str, target: str, fields: dict[str, str]) -> bytes:
    """The head of a request. Raises ValueError for what would break out of its line."""
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
    text = "\r\n".join([*lines, "\r\n"])
    ends = len(lines) + 1
    if text.count("\n") != ends or text.count("\r") != ends or "\0" in text or " " in target:
        raise ValueError("a request line or a header field holds a character it cannot")
    return text.encode("latin-1")
