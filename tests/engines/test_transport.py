"""The HTTP client towards engines, against a server that says exactly what it is told."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from orchestratord.infra.engines.transport import MIB, Transport
from orchestratord.infra.steps import Steps
from orchestratord.ports import EngineError
from tests.engines.faults import HastyClock
from tests.engines.support import CLOCK, RawServer, raw_server, response, run, stream, turn
from tests.turns import turn_of_loop

KEY = "sesame-open-up"
OK = response(b'{"a": 1}')


async def get(transport: Transport, path: str = "/x", limit_s: float = 5) -> tuple[int, object, str]:
    return await transport.request_json("GET", path, limit_s=limit_s)


@asynccontextmanager
async def to(url: str, api_key: str | None = None) -> AsyncIterator[Transport]:
    transport = Transport(url, clock=CLOCK, api_key=api_key)
    try:
        yield transport
    finally:
        await transport.close()


async def failing(transport: Transport, limit_s: float = 5) -> EngineError:
    """The error of a POST read to its end."""
    with pytest.raises(EngineError) as caught:
        await transport.request_json("POST", "/x", b"{}", limit_s=limit_s)
    return caught.value


def test_request_json() -> None:
    """Status, parsed body and text come back; no status is an error; a body that is no JSON parses as None."""

    async def body() -> None:
        async with (
            raw_server(OK, response(b"no", "418 Teapot"), response(b"", "200 OK")) as raw,
            to(raw.url + "/", KEY) as transport,
        ):
            assert await get(transport) == (200, {"a": 1}, '{"a": 1}')
            assert await get(transport) == (418, None, "no")
            assert await get(transport) == (200, None, "")
            head = raw.requests[0].lower()
            assert head.startswith(b"get /x http/1.1\r\n")
            assert b"authorization: bearer sesame-open-up\r\n" in head
            assert b"accept-encoding: identity\r\n" in head

    run(body())


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (None, "lost"),
        (b"HTTP/1.1 200 OK\r\nContent-Le", "lost"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n1234", "lost"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\n1234\r\n", "lost"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n", "protocol"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "protocol"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n", "protocol"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 100_000 + b"\r\n", "protocol"),
        (response(b"", "302 Found", extra="Location: http://169.254.169.254/\r\n"), "protocol"),
        (response(b"\x1f\x8b", extra="Content-Encoding: gzip\r\n"), "protocol"),
        (response(b"x" * (MIB + 1)), "protocol"),
    ],
    ids=[
        "silence",
        "half head",
        "short",
        "no last chunk",
        "bad chunk",
        "not http",
        "long",
        "many",
        "3xx",
        "gzip",
        "big",
    ],
)
def test_hostile_replies(reply: bytes | None, kind: str) -> None:
    """Whatever a server does, it becomes an EngineError of the right kind, without the key in it (OC-ADAPT)."""

    async def body() -> None:
        async with raw_server(reply) as raw, to(raw.url, KEY) as transport:
            error = await failing(transport)
            assert error.kind == kind
            assert KEY not in f"{error!r} {error} {error.__cause__!r} {transport!r}"
            assert raw.connections == 1

    run(body())


def test_nothing_listens() -> None:
    """A refused connection is `lost`, and says where; a password in the URL stays out of it."""

    async def body() -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))  # bound, not listening
            async with to(f"http://me:{KEY}@127.0.0.1:{taken.getsockname()[1]}") as transport:
                error = await failing(transport)
        assert error.kind == "lost"
        assert "127.0.0.1" in error.message
        assert KEY not in f"{error!r}{transport!r}"

    run(body())


def test_a_stream_needs_no_task_of_its_own() -> None:
    """The Task in which a connection is made ends with that; what waits for the stream stays `Steps`."""

    async def body() -> None:
        begun = asyncio.Event()

        async def follow(transport: Transport) -> None:
            async with transport.post("/x", b"{}", stream=True) as reply:
                begun.set()
                await reply.each(lambda data: True)

        loop, running = asyncio.get_running_loop(), set[Steps]()
        async with raw_server(stream(b"data: {}\n\n", end=False), stall=True) as raw, to(raw.url) as transport:
            loop.call_soon(Steps(follow(transport), loop, running).begin)
            await begun.wait()
            await turn()
            assert not [task for task in asyncio.all_tasks() if "follow" in repr(task)]
            running.pop().cancel()
            await raw.closed.wait()

    run(body())


def test_a_connect_that_is_given_up_leaves_no_connection() -> None:
    """Whenever that is: also when it has just come about, and whoever wanted it has not been told yet."""

    async def body() -> None:
        async with raw_server() as raw, to(raw.url) as transport:
            for turns in range(12):
                asking = asyncio.ensure_future(transport.connect())
                for _ in range(turns):
                    await turn_of_loop()
                if asking.done():
                    break
                asking.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await asking
                for _ in range(8):
                    await turn_of_loop()
                assert not transport._open
            assert asking.done(), "the last one was not given up"

    run(body())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs a backlog that is full to drop what comes")
def test_nobody_answers_a_connect() -> None:
    """A host that drops what it is sent costs the time limit of a connect, and is a timeout, not a loss."""

    async def body() -> None:
        with socket.socket() as deaf, contextlib.ExitStack() as others:
            deaf.bind(("127.0.0.1", 0))
            deaf.listen(0)
            for _ in range(4):  # nobody accepts: the first fill its backlog
                other = others.enter_context(socket.socket())
                other.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    other.connect(deaf.getsockname())
            transport = Transport(f"http://127.0.0.1:{deaf.getsockname()[1]}", clock=HastyClock())
            with pytest.raises(EngineError, match="no answer in time") as caught:
                async with transport.post("/x", b"{}"):
                    pass
            assert caught.value.kind == "timeout"
            await transport.close()

    run(body())


def test_time_limit() -> None:
    """A control request that is not answered in time is a `timeout`, and its connection is closed."""

    async def body() -> None:
        async with (
            raw_server(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", stall=True) as raw,
            to(raw.url) as transport,
        ):
            assert (await failing(transport, limit_s=0.05)).kind == "timeout"
            await raw.closed.wait()

    run(body())


def test_a_callers_own_timeout_is_not_the_engines() -> None:
    """A TimeoutError raised in the body of the context stays one."""

    async def body() -> None:
        async with raw_server(OK) as raw, to(raw.url) as transport:
            with pytest.raises(TimeoutError):
                async with transport.post("/x", b"{}"):
                    raise TimeoutError

    run(body())


def test_connections_are_kept() -> None:
    """Requests one after the other share a connection."""

    async def body() -> None:
        async with raw_server(OK, OK, keep=True) as raw, to(raw.url) as transport:
            await get(transport)
            await get(transport)
            assert raw.connections == 1

    run(body())


async def first_event(transport: Transport, *, satisfied: bool) -> bytes:
    """Ask for a stream and leave at its first event, `satisfied` with that or not."""
    got = bytearray()

    def take(data: bytes) -> bool:
        got.extend(data)
        return False

    async with transport.post("/x", b"{}", stream=True) as reply:
        await reply.each(take)
        reply.satisfied = satisfied
    return bytes(got)


LAST = stream(b"data: 1\n\n", end=False)


@pytest.mark.parametrize("satisfied", [True, False])
def test_the_connection_of_a_stream_is_kept_once_the_reader_has_what_it_wanted(satisfied: bool) -> None:
    """The end of the body comes after the last event. Whoever leaves before that closes the connection: an abort."""

    async def body() -> None:
        whole = LAST + b"0\r\n\r\n"
        async with raw_server(whole, whole, keep=True, step=len(LAST)) as raw, to(raw.url) as transport:
            for _ in range(2):
                assert await first_event(transport, satisfied=satisfied) == b"data: 1\n\n"
                while satisfied and not raw.answered:
                    await turn()
                await turn()
                raw.answered = 0
            assert raw.connections == (1 if satisfied else 2)

    run(body())


def test_a_stream_whose_end_has_not_come_is_no_connection_for_the_next_request() -> None:
    async def body() -> None:
        async with raw_server(LAST, OK, keep=True) as raw, to(raw.url) as transport:
            await first_event(transport, satisfied=True)
            assert (await get(transport))[1] == {"a": 1}
            assert raw.connections == 2

    run(body())


def test_an_engine_that_closes_behind_streams_gets_a_connection_for_each() -> None:
    """It announces that it keeps them. That is believed once; the request that found it out is made again."""

    async def body() -> None:
        whole = stream(b"data: 1\n\n")
        async with raw_server(whole, None, whole, whole, OK, keep=True) as raw, to(raw.url) as transport:
            for _ in range(3):
                await first_event(transport, satisfied=True)
                await turn()
            assert (len(raw.requests), raw.connections) == (4, 3), "the third stream took a connection of its own"
            await get(transport)
            assert raw.connections == 4

    run(body())


async def _after_one(raw: RawServer) -> EngineError | int:
    """What a POST gets on a connection that served one request before."""
    async with to(raw.url) as transport:
        await get(transport)
        try:
            return (await transport.request_json("POST", "/x", b'{"n": 2}', limit_s=5))[0]
        except EngineError as error:
            return error


def test_a_kept_connection_that_closes_is_retried_once() -> None:
    """Closed before a byte of the answer came: the request goes out again, silently, on another connection."""

    async def body() -> None:
        async with raw_server(OK, None, OK, keep=True) as raw:
            assert await _after_one(raw) == 200
            assert [request.rpartition(b"\r\n\r\n")[2] for request in raw.requests[1:]] == [b'{"n": 2}'] * 2
        async with raw_server(OK, None, None, OK, keep=True) as raw:
            error = await _after_one(raw)
            assert isinstance(error, EngineError)
            assert error.kind == "lost"
            assert len(raw.requests) == 3

    run(body())


def test_nothing_else_is_retried() -> None:
    """Not a new connection that closes, and not an answer that had begun: the work may have been done."""

    async def body() -> None:
        async with raw_server(None, OK) as raw, to(raw.url) as transport:
            assert (await failing(transport)).kind == "lost"
            assert len(raw.requests) == 1
        for begun in (b"HTTP/1.1 2", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n1"):
            async with raw_server(OK, begun, OK, keep=True) as raw:
                raw.close_after = 2
                error = await _after_one(raw)
                assert isinstance(error, EngineError)
                assert error.kind == "lost"
                assert len(raw.requests) == 2

    run(body())


def test_stray_bytes_are_not_the_next_answer() -> None:
    """What a server sends between two requests is never taken for the reply to the second."""

    async def body() -> None:
        stray = response(b'{"b": 2}')
        for step in (len(OK), len(OK) * 2):  # after the reply was read, and together with it
            async with raw_server(OK + stray, OK, keep=True, step=step) as raw, to(raw.url) as transport:
                await get(transport)
                while not raw.answered:
                    await turn()
                await turn()
                assert (await get(transport))[1] == {"a": 1}

    run(body())


def test_a_second_reply_in_one_read_is_no_part_of_the_first() -> None:
    """Neither its body, nor the answer to the next request."""

    async def body() -> None:
        async with raw_server(OK + response(b"[66]"), OK) as raw, to(raw.url) as transport:
            assert await get(transport) == (200, {"a": 1}, '{"a": 1}')
            assert await get(transport) == (200, {"a": 1}, '{"a": 1}')
            assert len(raw.requests) == 2

    run(body())


def test_leaving_early_closes_the_connection() -> None:
    """A reply left before its end takes its connection along, at once; the next request gets a new one."""

    async def body() -> None:
        head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"
        async with raw_server(head, OK, keep=True, stall=True) as raw, to(raw.url) as transport:
            async with transport.post("/x", b"{}") as reply:
                got: list[bytes] = []
                await reply.each(lambda data: bool(got.append(data)))
                assert got == [b"abc"]
            await raw.closed.wait()

    run(body())


def test_a_body_that_we_cut_is_not_complete() -> None:
    """Where the end of the connection is that of the body, only the server's own ends it."""

    async def body() -> None:
        begun = b"HTTP/1.1 200 OK\r\n\r\nabc"
        async with raw_server(begun) as raw, to(raw.url) as transport:
            assert (await get(transport))[2] == "abc"
        async with raw_server(begun, stall=True) as raw, to(raw.url) as transport:
            reading = asyncio.create_task(failing(transport))
            while not raw.answered:
                await turn()
            await turn()
            await transport.close()
            assert (await reading).kind == "lost"

    run(body())


def test_cancelling_before_the_head_closes_the_connection() -> None:
    """A request cancelled while the engine has said nothing yet is taken back at once."""

    async def body() -> None:
        async with raw_server(b"", stall=True) as raw, to(raw.url) as transport:
            task = asyncio.create_task(failing(transport))
            while not raw.requests:
                await asyncio.wait([task], timeout=0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await raw.closed.wait()

    run(body())


def test_close_is_idempotent() -> None:
    """Closing twice, or before any request, does nothing more; a transport can be used again after it."""

    async def body() -> None:
        async with raw_server(OK) as raw, to(raw.url) as transport:
            await transport.close()
            assert (await get(transport))[0] == 200
            await transport.close()
            await transport.close()

    run(body())
