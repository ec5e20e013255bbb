"""HTTP to engines: the one module that knows connections. Adapters see statuses, headers and bytes.

An engine is not trusted: no redirects, no proxies, no cookies, no compression, bounded bodies. Every failure is an
`EngineError`; none of them carries the API key.
"""

from __future__ import annotations

import asyncio
import base64
import ssl
from collections.abc import Mapping
from functools import cached_property, partial
from types import MappingProxyType, TracebackType
from typing import Any, Literal
from urllib.parse import SplitResult, unquote, urlsplit

import msgspec

from orchestratord.infra.engines import http1
from orchestratord.infra.engines.http1 import HIDDEN, Connection, Reply
from orchestratord.ports import Clock, EngineError, Timer

__all__ = ["MIB", "ErrorKind", "Reply", "Transport"]

CONNECT_S = 5.0
ENDING_S = 0.5  # between the last event of a stream and the end of its body, which follows at once
KEEPALIVE_S = 2.0  # below every engine's own: llama-server drops an idle connection after 5 s, uvicorn too
MIB = 1 << 20
NOTHING: Mapping[str, str] = MappingProxyType({})

ErrorKind = Literal["refused", "full", "lost", "timeout", "protocol", "failed"]


class Transport:
    """Connections to one engine server. `base_url`: scheme, host, port, perhaps a path prefix."""

    def __init__(self, base_url: str, *, clock: Clock, api_key: str | None = None) -> None:
        self._url = urlsplit(base_url.rstrip("/"))
        self._where = base_url.rstrip("/").rpartition("@")[2]  # an URL may carry a password
        self._clock = clock
        self._api_key = api_key
        self._idle: dict[Connection, None] = {}  # the longest unused first
        self._open: set[Connection] = set()
        self._look: Timer | None = None
        self._drops_streams = False  # it closes a stream's connection, whatever it says

    def __repr__(self) -> str:
        return f"Transport({self._where!r})"

    @cached_property
    def _secrets(self) -> tuple[bytes, ...]:
        """What an engine was sent to know us by, in every form it may repeat it in."""
        forms = [self._api_key or ""]
        if self._url.password is not None:
            forms += [self._fields["Authorization"].rpartition(" ")[2], unquote(self._url.password), self._url.password]
        return tuple(form.encode() for form in forms if form)

    # -- connections ---------------------------------------------------------------------------------------
    async def connected(self, stream: bool) -> Connection:
        """A kept connection, or a new one. Raises EngineError: lost, timeout or protocol."""
        return (self._kept() if self._keeps(stream) else None) or await self.connect()

    async def connect(self) -> Connection:
        """A new connection, made in a Task of its own: a run that became one for that would keep it to its end."""
        making = asyncio.get_running_loop().create_task(self._connect())
        try:
            return await making
        except asyncio.CancelledError:
            making.add_done_callback(_unwanted)
            raise

    async def _connect(self) -> Connection:
        url, loop = self._url, asyncio.get_running_loop()
        try:
            host, port, secure = _address(url)
            async with self._clock.limit(CONNECT_S):
                _, connection = await loop.create_connection(
                    partial(Connection, self._where, self._secrets, self._lost),
                    host,
                    port,
                    ssl=self._tls if secure else None,
                    server_hostname=host if secure else None,
                )
        except TimeoutError:
            raise EngineError("timeout", f"{self._where}: no answer in time") from None
        except ssl.SSLError as error:
            raise EngineError("protocol", f"{self._where}: the TLS handshake failed: {error.reason}") from None
        except OSError:
            raise EngineError("lost", f"{self._where}: nothing accepts connections") from None
        except ValueError as error:
            raise EngineError("protocol", f"{self._where}: the request could not be made: {error}") from None
        if connection.idle:  # else it is lost already
            self._open.add(connection)
        return connection

    def _lost(self, connection: Connection) -> None:
        self._open.discard(connection)
        self._idle.pop(connection, None)

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        return ssl.create_default_context()

    def _kept(self) -> Connection | None:
        """A connection that served a request not long ago, the last one first; older ones are closed."""
        fresh = self._clock.now() - KEEPALIVE_S
        while self._idle and (oldest := next(iter(self._idle))).idle_since <= fresh:
            del self._idle[oldest]
            oldest.abort()
        connection = next((each for each in reversed(self._idle) if each.idle), None)
        if connection is not None:
            del self._idle[connection]
        return connection

    def _keeps(self, stream: bool) -> bool:
        return not (stream and self._drops_streams)

    def give_back(self, connection: Connection, reply: Reply | None, stream: bool) -> None:
        if self._keeps(stream) and reply is not None and (connection.idle if reply.complete else reply.satisfied):
            connection.idle_since = self._clock.now()
            self._idle[connection] = None
            if not reply.complete and self._look is None:
                self._look = self._clock.call_at(connection.idle_since + ENDING_S, self._lose_patience)
        else:
            connection.abort()

    def _lose_patience(self) -> None:
        """Close connections whose reader was satisfied, where the end of the body does not come."""
        waiting = [connection for connection in self._idle if connection.ending]
        late = self._clock.now() - ENDING_S
        for connection in waiting:
            if connection.idle_since <= late:
                del self._idle[connection]
                connection.abort()
        young = [connection.idle_since for connection in waiting if connection.idle_since > late]
        self._look = self._clock.call_at(young[0] + ENDING_S, self._lose_patience) if young else None

    # -- requests ------------------------------------------------------------------------------------------
    @cached_property
    def _fields(self) -> dict[str, str]:
        url = self._url
        fields = {
            "Host": url.netloc.rpartition("@")[2],
            "User-Agent": "orchestratord",
            "Accept": "*/*",
            "Accept-Encoding": "identity",
        }
        if self._api_key:
            fields["Authorization"] = f"Bearer {self._api_key}"
        elif url.username is not None:
            pair = f"{unquote(url.username)}:{unquote(url.password or '')}"
            fields["Authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
        return fields

    def _request(self, method: str, path: str, body: bytes | None, extra: Mapping[str, str]) -> bytes:
        """The bytes of a request. Raises EngineError(protocol) for a key that no header can carry."""
        fields = {**self._fields, **extra}
        if body is not None:
            fields |= {"Content-Type": "application/json", "Content-Length": str(len(body))}
        try:
            return http1.head(method, self._url.path + path, fields) + (body or b"")
        except ValueError as error:  # `from None`: the exception may hold the key
            raise EngineError("protocol", f"{self._where}: the request could not be made: {error!s:.80}") from None

    def drops(self, connection: Connection) -> None:
        """The engine has closed a connection just as it was taken."""
        self._drops_streams |= connection.streamed

    def hidden(self, text: str) -> str:
        """Without our credentials: it may quote the engine."""
        for secret in self._secrets:
            text = text.replace(secret.decode(), HIDDEN.decode())
        return text

    def post(self, path: str, body: bytes, *, stream: bool = False, extra: Mapping[str, str] = NOTHING) -> Exchange:
        """POST a JSON document: an async context manager that gives the `Reply` once its head has arrived.

        There is no time limit beyond the connect: the caller's watchdogs decide. Leaving the context before the end
        of the body closes the connection at once, unless the reply is `satisfied`. stream: the reply may last, and what
        was learnt of the connections of this engine's streams counts. extra: more header fields.
        Raises EngineError.
        """
        return Exchange(self, path, self._request("POST", path, body, extra), stream)

    async def request_json(
        self, method: str, path: str, body: bytes | None = None, *, limit_s: float, max_bytes: int = MIB
    ) -> tuple[int, Any, str]:
        """One whole exchange in at most `limit_s` seconds: status, the body as JSON (None if it is none), as text.

        Raises EngineError; no status is an error here.
        """
        try:
            request = self._request(method, path, body, NOTHING)
            async with self._clock.limit(limit_s), Exchange(self, path, request, stream=False) as reply:
                raw = await reply.body(max_bytes)
        except TimeoutError:
            raise EngineError("timeout", f"{self._where}: no answer in time") from None
        try:
            parsed = msgspec.json.decode(raw) if raw else None
        except msgspec.DecodeError:
            parsed = None
        return reply.status, parsed, raw.decode("utf-8", "replace")

    async def close(self) -> None:
        """Close every connection. Idempotent."""
        self._idle.clear()
        if self._look is not None:
            self._look.cancel()
            self._look = None
        for connection in tuple(self._open):
            connection.abort()


class Exchange:
    """One request and its reply: an async context manager, plain because each open stream has one. See `post`.

    A kept connection may have been closed by the engine just as we took it. Then nothing was answered and the request
    goes out once more, on a new one; anything else is for the caller to judge. An engine that does so behind a stream
    (newer builds of llama.cpp say that they keep the connection, and close it) gets a connection for each stream from
    then on.
    """

    __slots__ = ("_connection", "_path", "_reply", "_request", "_stream", "_transport")

    def __init__(self, transport: Transport, path: str, request: bytes, stream: bool) -> None:
        self._transport = transport
        self._path = path
        self._request = request
        self._stream = stream
        self._connection: Connection | None = None
        self._reply: Reply | None = None

    async def __aenter__(self) -> Reply:
        try:
            return await self._answered()
        except BaseException as error:
            self._over(error)
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._over(error)

    async def _answered(self) -> Reply:
        """Returns once the head of the reply is there."""
        transport, request = self._transport, self._request
        self._request = b""  # a stream may last for minutes, and a prompt may be long
        connection = self._connection = await transport.connected(self._stream)
        reply = self._reply = connection.ask(request)
        try:
            await reply.head()
        except EngineError as error:
            if error.kind != "lost" or not connection.used or reply.begun:
                raise
            transport.drops(connection)
            connection = self._connection = await transport.connect()
            reply = self._reply = connection.ask(request)
            await reply.head()
        connection.used, connection.streamed = True, self._stream
        if 300 <= reply.status < 400:
            raise EngineError("protocol", f"{self._path} answers with a redirect; give the engine's own URL")
        if reply.headers.get("content-encoding", "identity").lower() != "identity":
            raise EngineError("protocol", f"{self._path} answers with a compressed body that was not asked for")
        return reply

    def _over(self, error: BaseException | None) -> None:
        """Whoever asked is done. Raises EngineError without our credentials for one that may hold them."""
        connection, self._connection = self._connection, None
        if connection is not None:
            self._transport.give_back(connection, self._reply, self._stream)
        if isinstance(error, EngineError):
            raise EngineError(error.kind, self._transport.hidden(error.message)) from None


def _unwanted(making: asyncio.Task[Connection]) -> None:
    """Whoever it was made for is gone."""
    if not making.cancelled() and making.exception() is None:
        making.result().abort()


def _address(url: SplitResult) -> tuple[str, int, bool]:
    """(host, port, whether TLS is spoken). Raises ValueError."""
    if url.scheme not in ("http", "https") or not url.hostname:
        raise ValueError("an engine's URL begins with http:// or https:// and names a host")
    secure = url.scheme == "https"
    return url.hostname, url.port or (443 if secure else 80), secure
