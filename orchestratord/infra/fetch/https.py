"""HTTPS to places the policy names: the only module that fetches. Callers see statuses, headers and bytes.

A host is resolved once, every address it has is judged, and the connection goes to one of just these: what a name
says a moment later does not matter. Redirects are followed one by one, each under the same rules. A credential goes to
the host it is for and to no other. No proxies, cookies or compression; only TLS, checked against the host's name.
"""

from __future__ import annotations

import asyncio
import base64
import os
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import aiohttp
import msgspec
from aiohttp import hdrs, http_exceptions
from yarl import URL

from orchestratord.domain.url import BadReference, Url, is_address, join
from orchestratord.infra.fetch.policy import FetchPolicy, refused
from orchestratord.ports import Clock, ModelUnavailable

MAX_REDIRECTS = 5
READ_BUFFER = 1 << 18  # what is in it when a connection is cut is lost
REDIRECTS = (301, 302, 303, 307, 308)
PASSING = (408, 425, 429, 500, 502, 503, 504)

T = TypeVar("T")
Resolve = Callable[[str, int], Awaitable[list[str]]]


class Interrupted(Exception):
    """It did not work this time and may the next: nothing was refused."""


class Answer:
    """An answer whose head has arrived, after any redirects. Iterate `chunks` at most once."""

    def __init__(self, url: Url, response: aiohttp.ClientResponse, clock: Clock, idle_s: float) -> None:
        self.url = url
        self._response = response
        self._clock = clock
        self._idle_s = idle_s

    @property
    def status(self) -> int:
        return self._response.status

    @property
    def headers(self) -> Mapping[str, str]:
        """Names are case-insensitive."""
        return self._response.headers

    @property
    def ends(self) -> bool:
        """Whether a body that was cut can be told from a whole one."""
        return self._response.content_length is not None or self.headers.get(hdrs.TRANSFER_ENCODING) == "chunked"

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes. Raises Interrupted when it is cut short or falls silent."""
        while True:
            with _Failures(self.url):
                async with self._clock.limit(self._idle_s):
                    data = await self._response.content.readany()
            if not data:
                return
            yield data

    async def body(self, max_bytes: int) -> bytes:
        """The whole of a small body. Raises ModelUnavailable when it is larger, and Interrupted."""
        body = bytearray()
        async for data in self.chunks():
            body += data
            if len(body) > max_bytes:
                raise ModelUnavailable("FETCH_FAILED", f"{self.url.shown} answers with more than {max_bytes} bytes.")
        return bytes(body)

    def unless_fine(self, *fine: int) -> None:
        """Raises Interrupted or ModelUnavailable for a status that is not one of `fine`."""
        where, status = self.url.shown, self.status
        if status in fine:
            return
        if status in PASSING:
            raise Interrupted(f"{where} answers {status}")
        if status in (404, 410):
            raise ModelUnavailable("NOT_FOUND", f"There is nothing at {where} ({status}).")
        if status in (401, 403):
            hint = f"Name the environment variable with its token in models.fetch.tokens for {self.url.netloc}."
            raise ModelUnavailable("FETCH_FAILED", f"{where} wants other credentials ({status}). {hint}")
        raise ModelUnavailable("FETCH_FAILED", f"{where} answers {status}, which is no way to send a file.")


def decode(body: bytes, kind: type[T]) -> T:
    """What a stranger's JSON holds. Raises msgspec.DecodeError."""
    try:
        return msgspec.json.decode(body, type=kind)
    except RecursionError:
        raise msgspec.DecodeError("it nests too deep") from None


class _Failures:
    """Context manager: what the library or the system raises inside becomes Interrupted."""

    def __init__(self, url: Url) -> None:
        self._where = url.shown

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: object) -> None:
        if isinstance(error, aiohttp.ClientConnectorCertificateError | ssl.SSLCertVerificationError):
            raise ModelUnavailable(
                "UNTRUSTED_ARTIFACT",
                f"{self._where}: its certificate is not trusted. Add its root to models.fetch.ca_roots if it is yours.",
            ) from None
        if isinstance(error, TimeoutError):
            raise Interrupted(f"{self._where} gives no answer in time") from None
        if isinstance(error, OSError | aiohttp.ClientError | http_exceptions.HttpProcessingError | ValueError):
            raise Interrupted(f"{self._where}: {_plain(error)}") from None  # the library's own hold the request


def _plain(error: BaseException) -> str:
    match error:
        case socket.gaierror():
            return "the name is not known"
        case aiohttp.ClientSSLError() | ssl.SSLError():
            return "the TLS handshake failed"
        case aiohttp.ClientConnectorError():
            return "nothing accepts connections"
        case aiohttp.ClientPayloadError():
            return "the connection closed within the answer"
        case aiohttp.ServerDisconnectedError():
            return "the connection closed without an answer"
        case OSError():
            return "the connection broke"
    return "the answer is not valid HTTP"


async def system_resolve(host: str, port: int) -> list[str]:
    """All addresses of a name. Raises OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


class _Abrupt(aiohttp.TCPConnector):
    """Connections end at once, also those of a request that was given up before it was answered: a server that owes its
    farewell of TLS must not hold anything open, least of all a loop that wants to close."""

    def _release(self, key: Any, protocol: Any, *, should_close: bool = False) -> None:
        if protocol.transport is not None:
            protocol.transport.abort()
        super()._release(key, protocol, should_close=should_close)


class Https:
    """`environ` is where tokens are; they are read when they are needed and kept nowhere."""

    def __init__(
        self,
        policy: FetchPolicy,
        clock: Clock,
        *,
        resolve: Resolve = system_resolve,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        self._policy = policy
        self._clock = clock
        self._resolve = resolve
        self._environ = environ
        self._session: aiohttp.ClientSession | None = None
        self._tls: ssl.SSLContext | None = None

    @asynccontextmanager
    async def request(
        self,
        method: str,
        url: Url,
        headers: Mapping[str, str] | None = None,
        *,
        authorization: str | None = None,
        follow: bool = True,
    ) -> AsyncIterator[Answer]:
        """The answer to a request, after redirects unless told not to follow. Whatever its status is, it is no error.

        `authorization` is for the host of `url` alone, in place of its configured token. Raises Interrupted, and
        ModelUnavailable for what the policy forbids.
        """
        given, first = dict(headers or {}), url.netloc
        for _ in range(MAX_REDIRECTS + 1):
            credential = (authorization if url.netloc == first else None) or self.credential(url)
            sent = given if credential is None else {**given, str(hdrs.AUTHORIZATION): credential}
            response = await self._send(method, url, sent)
            try:
                answer = Answer(url, response, self._clock, self._policy.idle_s)
                if answer.headers.get(hdrs.CONTENT_ENCODING, "identity").lower() != "identity":
                    raise ModelUnavailable("FETCH_FAILED", f"{url.shown} compresses its answer without being asked to.")
                if response.status not in REDIRECTS or not follow:
                    yield answer
                    return
                url = _next(answer)
            finally:
                response.close()
        raise ModelUnavailable("FETCH_FAILED", f"{url.shown}: more than {MAX_REDIRECTS} redirects.")

    def credential(self, url: Url) -> str | None:
        """What the configuration has for just this host: `user:password` goes as Basic, anything else as Bearer."""
        name = self._policy.tokens.get(url.netloc)
        secret = self._environ.get(name, "").strip() if name is not None else ""
        if not secret:
            return None
        if ":" in secret:
            return "Basic " + base64.b64encode(secret.encode()).decode()
        return f"Bearer {secret}"

    async def _send(self, method: str, url: Url, headers: Mapping[str, str]) -> aiohttp.ClientResponse:
        self._policy.check_url(url)
        with _Failures(url):
            async with self._clock.limit(self._policy.connect_s):
                addresses = [url.host] if is_address(url.host) else await self._resolve(url.host, url.port)
            for address in addresses:  # one that is not public spoils all: somebody means to lead us there
                self._policy.check_address(url, address)
            session, last = await self._client(), len(addresses) - 1
            for n, address in enumerate(addresses):
                try:
                    async with self._clock.limit(self._policy.connect_s + self._policy.idle_s):
                        return await session.request(
                            method,
                            _pinned(url, address),
                            headers={hdrs.HOST: url.netloc, **headers},
                            server_hostname=url.host,
                            allow_redirects=False,
                        )
                except aiohttp.ClientConnectorCertificateError:
                    raise
                except (aiohttp.ClientConnectorError, TimeoutError):
                    if n == last:
                        raise
            raise OSError("the name has no address")

    async def _client(self) -> aiohttp.ClientSession:
        """Made when first needed. Connections are not kept: a kept one would be found by address, not by host."""
        if self._tls is None:
            self._tls = await asyncio.to_thread(self._context)
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=_Abrupt(limit=0, force_close=True, ssl=self._tls),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={hdrs.USER_AGENT: "orchestratord", hdrs.ACCEPT_ENCODING: "identity"},
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._policy.connect_s),
                auto_decompress=False,
                trust_env=False,
                read_bufsize=READ_BUFFER,
            )
        return self._session

    def _context(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        for path in self._policy.ca_roots:
            try:
                context.load_verify_locations(path)
            except OSError as error:  # ssl.SSLError is one
                raise refused(f"models.fetch.ca_roots: {path} cannot be read as certificates ({error}).") from None
        return context

    async def close(self) -> None:
        """Close every connection. Idempotent."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()


def _pinned(url: Url, address: str) -> URL:
    host = f"[{address}]" if ":" in address else address
    return URL(f"https://{host}:{url.port}{url.target}", encoded=True)


def _next(answer: Answer) -> Url:
    location = answer.headers.get(hdrs.LOCATION, "")
    try:
        if not location:
            raise BadReference("it says to nowhere")
        return join(answer.url, location)
    except BadReference as error:
        raise refused(f"{answer.url.shown} redirects where nothing can be fetched: {error}.") from None
