"""C: streams to clients (C11: cancel.py)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from itertools import pairwise

import psutil
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestratord.wire import sse
from tests.engines.test_sse_decoder import reference
from tests.http.support import RawConnection, submit, wait_for
from tests.reliability.rows import ROOT, Seen, Skipped, row, tests
from tests.reliability.stage import daemon, live, many_descriptors, p99, said

HISTORY = 4_000  # events a stalled reader is behind from its first moment: more than the kernel takes for it


class Fast(threading.Thread):
    """A reader that takes all it can get; when each piece with a token came, and whether any id was left out."""

    def __init__(self, url: str, task_id: str, after: int) -> None:
        super().__init__(daemon=True)
        self.came: list[float] = []
        self.last = after
        self.whole = True
        self._connection = RawConnection(url)
        self._connection.get(f"/v1/tasks/{task_id}/stream", Last_Event_ID=str(after))
        assert self._connection.head()[0] == 200

    def run(self) -> None:
        with contextlib.suppress(AssertionError, OSError):  # RawConnection reads four megabytes, or is closed
            for data in self._connection.chunks():
                self._connection.received = 0
                if b"event: token" in data:
                    self.came.append(time.perf_counter())
                for line in data.split(b"\n"):
                    if line.startswith(b"id: "):
                        self.whole &= int(line[4:]) == self.last + 1
                        self.last += 1

    def gaps(self, seconds: float, inside: psutil.Process) -> tuple[float, float]:
        """p99 of the milliseconds between two pieces, the least of three spans of so many seconds; and what the daemon
        `inside` takes of a processor for each piece, in milliseconds: other programs do not change that.
        """
        found, began, busy = [], len(self.came), sum(inside.cpu_times()[:2])
        for _ in range(3):
            first = len(self.came)
            threading.Event().wait(seconds)
            span = self.came[first:]
            found.append(p99([b - a for a, b in pairwise(span)]))
        took = sum(inside.cpu_times()[:2]) - busy
        return min(found), took * 1000 / (len(self.came) - began)

    def close(self) -> None:
        self._connection.close()


@contextlib.contextmanager
def _stalled(url: str, task_id: str, count: int) -> Iterator[None]:
    readers = []
    for _ in range(count):
        readers.append(RawConnection(url, receive_buffer=4096))
        readers[-1].get(f"/v1/tasks/{task_id}/stream")
    try:
        yield
    finally:
        for connection in readers:
            connection.reset()


@row(
    "C1",
    "readers that take nothing, twice, beside a fast one",
    "<= 150 KB each, the second wave <= 10 MB; each cut after 30 s and logged; a fast one whole, its p99 <= 20 % more",
    200,
    1_000,
    timed=True,
)
def stalled(size: int) -> Seen:
    stall_s = 30 if size >= 1_000 else 4
    many_descriptors()
    with daemon(
        connections=3 * size,
        streams=f"{{ stall_ms = {stall_s * 1000} }}",
        token_ms=5,
        ctx=200_000,
    ) as process:
        inside = psutil.Process(process.process.pid)
        with process.session() as session:
            task_id = submit(session, max_tokens=100_000, ctx=200_000, deadline_ms=3_600_000, on_disconnect="continue")
            wait_for(
                lambda: session.get(f"/v1/tasks/{task_id}").json()["last_event_id"] >= HISTORY, "there is a history", 90
            )
            fast = Fast(process.url, task_id, HISTORY)
            fast.start()
            alone, cost = fast.gaps(4, inside)
            grown, beside, costs, before = [], [], [], inside.memory_info().rss
            for wave in (1, 2):
                with _stalled(process.url, task_id, size):
                    found = fast.gaps(min(8, stall_s / 4), inside)
                    beside.append(found[0])
                    costs.append(found[1])
                    grown.append((inside.memory_info().rss - before) / 1e6)
                    wait_for(lambda wave=wave: said(process, "reader_cut") >= wave * size, "all are cut", 60)
            assert fast.whole, "the fast reader missed events"
            assert fast.is_alive()
            fast.close()
    worst = max(beside)
    assert grown[0] <= 0.15 * size, f"{grown[0]:.0f} MB"
    assert grown[1] - grown[0] <= 10, f"{grown[0]:.0f} MB, then {grown[1]:.0f} MB"
    times = f"p99 {alone:.1f} ms alone, {worst:.1f} ms beside them; {cost:.2f} and {max(costs):.2f} ms of CPU a token"
    assert worst <= 1.2 * alone, f"{grown[0] / size * 1000:.0f} KB each, {times}"
    return Seen(
        2 * size,
        f"{grown[0] / size * 1000:.0f} KB each, second wave {grown[1] - grown[0]:+.1f} MB, all cut after {stall_s} s "
        f"and logged; fast reader whole, {times}",
    )


def _gaps(url: str, task_id: str, slow: int) -> list[float]:
    """Seconds between tokens as 15 fast readers see them, `slow` others reading 1 KB a second."""
    over = threading.Event()
    gaps: list[float] = []

    def fast() -> None:
        with RawConnection(url) as connection:
            connection.socket.settimeout(60)
            connection.get(f"/v1/tasks/{task_id}/stream")
            last = None
            for data in connection.chunks() if connection.head()[0] == 200 else ():
                now = time.perf_counter()
                if b"event: token" in data:
                    if last is not None:
                        gaps.append(now - last)
                    last = now

    def trickle() -> None:
        with RawConnection(url, receive_buffer=4096) as connection:
            connection.get(f"/v1/tasks/{task_id}/stream")
            while not over.wait(0.25):
                connection.socket.recv(256)

    slow_ones = [threading.Thread(target=trickle) for _ in range(slow)]
    fast_ones = [threading.Thread(target=fast) for _ in range(15)]
    for thread in (*slow_ones, *fast_ones):
        thread.start()
    for thread in fast_ones:
        thread.join()
    over.set()
    for thread in slow_ones:
        thread.join()
    return gaps


@row(
    "C2",
    "one reader at 1 KB/s among 15 fast ones (tokens each)",
    "p99 between tokens <= 10 ms more",
    300,
    3_000,
    timed=True,
)
def trickling(size: int) -> Seen:
    with daemon(token_ms=5) as process, process.session() as session:
        found = []
        for slow in (0, 1):
            task_id = submit(session, max_tokens=size, ctx=4096, on_disconnect="continue")
            found.append(p99(_gaps(process.url, task_id, slow)))
    assert found[1] - found[0] <= 10, found
    return Seen(size, f"p99 {found[0]:.1f} ms without it, {found[1]:.1f} ms with it")


tests(
    "C3",
    "resuming at every event, live and finished, by both ways (and see B2)",
    "exact suffix, no gap, no repetition",
    "http/test_streams.py::test_a_finished_stream_resumes_at_every_point",
    "http/test_streams.py::test_a_running_stream_resumes_at_every_point",
    "http/test_streams.py::test_resuming_again_and_again_gives_the_log_once",
)
tests(
    "C4",
    "resuming after a restart, and after the log left memory",
    "0 renumbered ids",
    "crash/test_kill9.py::test_one_running_and_five_queued",
    "http/test_old_logs.py",
)
tests("C5", "every Last-Event-ID that is none", "400, or as documented; 5xx 0", "http/test_last_event_id.py")


@row("C6", "token texts hypothesis makes up, and attacks", "each one frame, round trip exact, in 2 parsers", 50, 2_500)
def forging(size: int) -> Seen:
    """Hypothesis makes up a dozen pieces at a time, which takes it longer than all the rest; a text is any run of up to
    eight of them."""
    attacks = ["\r", "\n", "\r\n", "\n\n", "\x00", "\u2028", "\u0085", "\ufeff", "event: end", "data: {}", "id: 9", ":"]
    piece = st.one_of(st.text(), st.sampled_from(attacks), st.sampled_from(attacks))
    tried: set[str] = set()

    def one_frame(text: str) -> None:
        whole = sse.encode(1, "started", {}) + sse.TOKEN % (2, sse.quote(text), 0) + sse.encode(3, "end", {"t": text})
        events = list(sse.decode(whole))
        assert [(i, n) for i, n, _ in events] == [(1, "started"), (2, "token"), (3, "end")]
        assert events[1][2]["t"] == events[2][2]["t"] == text
        payloads = reference(whole)
        assert len(payloads) == 3
        assert json.loads(payloads[1])["t"] == json.loads(payloads[2])["t"] == text

    @settings(max_examples=size, deadline=None, database=None, derandomize=True)
    @given(st.lists(piece, min_size=12, max_size=12))
    def every_run(pieces: list[str]) -> None:
        runs = {"".join(pieces[i:j]) for i in range(12) for j in range(i + 1, min(i + 9, 13))} - tried
        for text in runs:
            one_frame(text)
        tried.update(runs)

    every_run()
    return Seen(len(tried), "0 mismatches, 0 forged")


@row("C7", "our streams through httpx-sse, sseclient-py and npm's eventsource-parser", "read as written", 200, 2_000)
def foreign(size: int) -> Seen:
    command = [sys.executable, "-m", "tox", "run", "-q", "-e", "foreign", "--", "--count", str(size)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if "read otherwise" in line]
    if not lines:
        raise Skipped("the parsers could not be installed")
    assert done.returncode == 0, lines
    return Seen(size, "; ".join(lines))


@row("C8", "a proxy that cuts what is silent for 1 s; seconds of a waiting task", "drops 0", 5, 60)
def idle_proxy(size: int) -> Seen:
    """Keep-alives every 300 ms stand for 15 s against the 20 s and more that proxies allow."""
    quiet, comments = {"metrics_ms": 3_600_000, "metrics_queued_ms": 3_600_000, "keep_alive_ms": 300}, 0
    with live(streams=quiet) as (app, session):
        app.call(app.engine().hold)
        task_id = submit(session)

        async def through() -> int:
            reader, writer = await asyncio.open_connection("127.0.0.1", int(app.url.rpartition(":")[2]))
            writer.write(f"GET /v1/tasks/{task_id}/stream HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
            seen, until = 0, asyncio.get_running_loop().time() + size
            while asyncio.get_running_loop().time() < until:
                async with asyncio.timeout(1.0):  # noqa: TID251 - the proxy's patience is the subject
                    data = await reader.read(65536)
                assert data, "the stream ended"
                seen += data.count(sse.KEEP_ALIVE)
            writer.close()
            return seen

        comments = asyncio.run(through())
        app.call(app.engine().release_hold)
    assert comments >= size
    return Seen(size, f"drops 0; {comments} keep-alives")


tests(
    "C9",
    "failures behind the 200: engines, shutdown, a second signal",
    "a terminal event, never a silent end",
    "http/test_streams.py::test_a_failure_behind_the_200_is_an_error_event",
    "http/test_lifecycle.py::test_in_memory_every_stream_ends_with_its_terminal_event",
    "http/test_lifecycle.py::test_a_second_signal_leaves_no_stream_without_an_end",
)
tests(
    "C10",
    "a reader whose packets are all dropped (socket filter)",
    "gone <= 60 s",
    "http/test_crowd.py::test_a_reader_that_vanishes_without_a_word_is_noticed",
    "http/test_crowd.py::test_the_kernel_watches_every_connection",
)
tests(
    "C12",
    "headers of a stream",
    "no store, no proxy buffering; the first event at once",
    "http/test_streams.py::test_the_headers_of_a_stream",
    "http/test_streams.py::test_started_comes_at_once_though_the_task_waits",
)
