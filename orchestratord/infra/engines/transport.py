"""HTTP to engines: the one module that knows the client library. Adapters see statuses, headers and bytes.

An engine is not trusted: no redirects, no proxies, no cookies, no compression, bounded bodies. Every failure is an
`EngineError`; none of them carries the API key.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import TracebackType
from typing import Any, Literal, Self

import aiohttp
import msgspec
from aiohttp import hdrs, http_exceptions

from orchestratord.ports import Clock, EngineError

CONNECT_S = 5.0
KEEPALIVE_S = 2.0  # below every engine's own: llama-server drops an idle connection after 5 s, uvicorn too
MIB = 1 << 20
HIDDEN = b"[redacted]"  # in place of the API key, should an engine repeat it

ErrorKind = Literal["refused", "full", "lost", "timeout", "protocol", "failed"]
# First match wins: the library's classes overlap (its connect errors are OSErrors too).
_FAILURES: tuple[tuple[type[BaseException], ErrorKind, str], ...] = (
    (TimeoutError, "timeout", "no answer in time"),
    (aiohttp.ClientSSLError, "protocol", "the TLS handshake failed"),
    (aiohttp.ClientConnectorError, "lost", "nothing accepts connections"),
    (aiohttp.ClientResponseError, "protocol", "the reply is not valid HTTP"),
    (http_exceptions.HttpProcessingError, "protocol", "the reply is not valid HTTP"),
    (aiohttp.ClientPayloadError, "lost", "the connection closed within the reply"),
    (aiohttp.ServerDisconnectedError, "lost", "the connection closed without a reply"),
    (OSError, "lost", "the connection broke"),
    (aiohttp.ClientError, "protocol", "the request could not be made"),
    (ValueError, "protocol", "the request could not be made"),
)


class _Failures:
    """Context manager: what the library or the system raises inside becomes an EngineError."""

    def __init__(self, where: str) -> None:
        self._where = where

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for known, engine_kind, text in _FAILURES:
            if isinstance(error, known):
                # `from None`: the library's exceptions hold the request, and with it the key.
                raise EngineError(engine_kind, f"{self._where}: {text}") from None


class _Connector(aiohttp.TCPConnector):
    """A connector whose connects are bounded by our own clock, and which trusts no kept connection blindly."""

    def __init__(self, clock: Clock, keep: bool) -> None:
        super().__init__(limit=0, **({"keepalive_timeout": KEEPALIVE_S} if keep else {"force_close": True}))
        self._clock = clock

    async def connect(self, *args: Any, **kwargs: Any) -> Any:
        async with self._clock.limit(CONNECT_S):
            while True:
                connection = await super().connect(*args, **kwargs)
                # Bytes that came between two requests would pass for the answer to the next one.
                if connection.protocol is None or not connection.protocol.should_close:
                    return connection
                connection.close()


class _Attempt:
    """One request on the wire: did it go out on a connection kept from an earlier one?"""

    __slots__ = ("kept",)

    def __init__(self) -> None:
        self.kept = False


async def _reused(session: aiohttp.ClientSession, context: Any, params: Any) -> None:
    context.trace_request_ctx.kept = True


class Reply:
    """A reply whose head has arrived and whose body may still be coming. Iterate `chunks` at most once."""

    def __init__(self, response: aiohttp.ClientResponse, failures: _Failures, secret: bytes) -> None:
        self._response = response
        self._failures = failures
        self._secret = secret

    @property
    def status(self) -> int:
        return self._response.status

    @property
    def headers(self) -> Mapping[str, str]:
        """Names are case-insensitive."""
        return self._response.headers

    def chunks(self) -> AsyncIterator[bytes]:
        """The body: all bytes pending per wake-up. Raises EngineError if it is cut short."""
        return self

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        with self._failures:
            data = await self._response.content.readany()
        if not data:
            raise StopAsyncIteration
        return data

    async def body(self, max_bytes: int) -> bytes:
        """The whole body, our API key hidden in it. Raises EngineError(protocol) when it is longer than `max_bytes`."""
        body = bytearray()
        async for data in self.chunks():
            body += data
            if len(body) > max_bytes:
                raise EngineError("protocol", f"a reply of more than {max_bytes} bytes")
        return bytes(body.replace(self._secret, HIDDEN)) if self._secret else bytes(body)

    def abort(self) -> None:
        """Close the connection now, unless it has been given back already. Unsent bytes are dropped: an engine that
        does not read must not hold the socket open."""
        connection = self._response.connection
        if connection is not None and connection.transport is not None:
            connection.transport.abort()
        self._response.close()


class Transport:
    """Connections to one engine server. `base_url`: scheme, host, port, perhaps a path prefix."""

    def __init__(self, base_url: str, *, clock: Clock, api_key: str | None = None) -> None:
        self._base = base_url.rstrip("/")
        self._clock = clock
        self._api_key = api_key
        self._sessions: dict[bool, aiohttp.ClientSession] = {}  # by whether they keep connections
        self._failures = _Failures(self._base.rpartition("@")[2])  # an URL may carry a password

    def __repr__(self) -> str:
        return f"Transport({self._failures._where!r})"

    def _session(self, keep: bool) -> aiohttp.ClientSession:
        """Made when first needed, on the loop that uses it."""
        if keep not in self._sessions:
            headers = {
                hdrs.USER_AGENT: "orchestratord",
                hdrs.ACCEPT_ENCODING: "identity",
                hdrs.CONTENT_TYPE: "application/json",
            }
            if self._api_key:
                headers[hdrs.AUTHORIZATION] = f"Bearer {self._api_key}"
            if not keep:
                headers[hdrs.CONNECTION] = "close"
            trace = aiohttp.TraceConfig()
            trace.on_connection_reuseconn.append(_reused)
            self._sessions[keep] = aiohttp.ClientSession(
                connector=_Connector(self._clock, keep),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers=headers,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
                auto_decompress=False,
                trust_env=False,
                trace_configs=[trace] if keep else [],
            )
        return self._sessions[keep]

    async def _request(self, method: str, path: str, body: bytes | None, keep: bool) -> aiohttp.ClientResponse:
        """The reply to one request, once its head is there.

        A kept connection may have been closed by the engine just as we took it. Then nothing was answered and the
        request goes out once more; anything else is for the caller to judge.
        """
        session = self._session(keep)
        for last in (False, True):
            attempt = _Attempt()
            try:
                return await session.request(
                    method, self._base + path, data=body, allow_redirects=False, trace_request_ctx=attempt
                )
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
                # The library puts what it has of the head into `message`; text means it has nothing.
                answered = not isinstance(getattr(error, "message", ""), str)
                if last or answered or not attempt.kept:
                    raise
        raise AssertionError("unreachable")

    @asynccontextmanager
    async def _reply(self, method: str, path: str, body: bytes | None, keep: bool) -> AsyncIterator[Reply]:
        with self._failures:
            response = await self._request(method, path, body, keep)
        reply = Reply(response, self._failures, (self._api_key or "").encode())
        try:
            if 300 <= reply.status < 400:
                raise EngineError("protocol", f"{path} answers with a redirect; give the engine's own URL")
            if reply.headers.get(hdrs.CONTENT_ENCODING, "identity").lower() != "identity":
                raise EngineError("protocol", f"{path} answers with a compressed body that was not asked for")
            yield reply
        except EngineError as error:
            raise EngineError(error.kind, self._hidden(error.message)) from None  # it may quote the engine
        finally:
            reply.abort()

    def _hidden(self, text: str) -> str:
        return text.replace(self._api_key, HIDDEN.decode()) if self._api_key else text

    def post(self, path: str, body: bytes, *, keep: bool = True) -> AbstractAsyncContextManager[Reply]:
        """POST a JSON document: an async context manager that gives the `Reply` once its head has arrived.

        There is no time limit beyond the connect: the caller's watchdogs decide. Leaving the context before the end
        of the body closes the connection at once. keep: whether a connection may serve several requests.
        Raises EngineError.
        """
        return self._reply("POST", path, body, keep)

    async def request_json(
        self, method: str, path: str, body: bytes | None = None, *, limit_s: float, max_bytes: int = MIB
    ) -> tuple[int, Any, str]:
        """One whole exchange in at most `limit_s` seconds: status, the body as JSON (None if it is none), as text.

        Raises EngineError; no status is an error here.
        """
        with self._failures:
            async with self._clock.limit(limit_s), self._reply(method, path, body, True) as reply:
                raw = await reply.body(max_bytes)
        try:
            parsed = msgspec.json.decode(raw) if raw else None
        except msgspec.DecodeError:
            parsed = None
        return reply.status, parsed, raw.decode("utf-8", "replace")

    async def close(self) -> None:
        """Close every connection. Idempotent."""
        while self._sessions:
            await self._sessions.popitem()[1].close()
