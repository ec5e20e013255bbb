"""D: hostile or broken engines."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections import Counter
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

from orchestratord.infra.clock import SystemClock
from orchestratord.infra.engines.transport import Transport
from orchestratord.ports import EngineError
from orchestratord.testing.tiny_gguf import tiny_llama
from tests.http.support import task, wait_for
from tests.reliability.clients import at_once
from tests.reliability.rows import Seen, passing, program, row, tests
from tests.reliability.stage import live

CONFORMS, SURVIVES = "engines/test_conformance.py::test_conforms", "engines/test_conformance.py::test_survives"
READS, KEEPS = "engines/test_conformance.py::test_reads_over", "engines/test_conformance.py::test_keeps"

tests("D1", "streams cut at every byte, of every driver", "the same text", "engines/test_sse_decoder.py", READS)
tests("D2", "characters cut in their middle, bytes that are no UTF-8", "exact, or failed; 0 mojibake", READS, SURVIVES)
tests("D3", "lines and events without end", "failed at 1 MiB", SURVIVES, "engines/test_sse_decoder.py::test_too_long")
tests(
    "D4",
    "an engine that ignores max_tokens, a task that outgrows its log",
    "cut at the limit, engine told",
    "services/test_replicas.py::test_an_engine_that_goes_on_after_max_tokens_is_cut",
    "services/test_replicas.py::test_an_engine_that_never_ends_is_stopped_at_its_limit",
    "domain/test_core.py::test_a_task_that_outgrows_its_log_fails",
)
tests(
    "D5",
    "500, resets and clean ends, before and after output",
    "again only before output; 0 duplicated tokens",
    SURVIVES,
    "services/test_replicas.py::test_a_task_fails_over_before_its_first_token",
    "services/test_replicas.py::test_every_fault_ends_the_task_once_and_frees_the_slot",
    "domain/test_retries.py",
)
tests("D6", "events that are not JSON, of other shapes, with odd counts", "failed; spend as held", SURVIVES, KEEPS)
tests(
    "D7",
    "redirects, coded and odd replies",
    "refused; no hop",
    SURVIVES,
    "engines/test_transport.py::test_hostile_replies",
)
tests(
    "D8",
    "silence before the answer, before the first token, between two",
    "a limit for each",
    "services/test_watchdogs.py",
    "engines/test_transport.py::test_time_limit",
    KEEPS,
)
program(
    "D14",
    "real engines killed, frozen, slowed and lying (tasks)",
    "0 findings, no engine left",
    "tests.chaos --seed 1 --count {}",
    40,
    1_000,
)
tests(
    "D10",
    "engines whose health is fine and whose work is not",
    "no work after 3 failures until a probe",
    "services/test_watchdogs.py::test_an_engine_that_hangs_task_after_task_gets_no_more",
    "services/test_replicas.py::test_an_engine_that_keeps_failing_is_left_alone_until_a_probe_works",
    "services/test_replicas.py::test_a_replica_that_cannot_decode_is_not_ready",
)
tests(
    "D13",
    "sampling out of bounds",
    "400; forwarded 0",
    "http/test_errors.py::test_a_field_out_of_its_bounds_is_400",
    "services/test_admission.py::test_a_knob_the_engine_does_not_have_is_named",
)


# -- D9: an engine that dies full of work --------------------------------------------------------------------
SLOTS, TOKENS = 64, 100


@row(
    "D9",
    "a real engine killed -9 with 64 tasks on it and 64 that wait (times; frozen and slowed ones: D14)",
    "each ends or is tried again, nothing stuck, serving again after <= 3 starts",
    1,
    10,
)
def killed(size: int) -> Seen:
    ends: Counter[str] = Counter()
    most = 0
    with TemporaryDirectory() as folder:
        model = Path(folder) / "tiny.gguf"
        tiny_llama(model)
        process = {"model_path": str(model), "slots": SLOTS, "ctx": 256}
        pool = {
            "id": "home",
            "engine": "llamacpp",
            "model": "file:home.gguf",
            "queue": {"capacity": 2 * SLOTS},
            "replicas": [{"id": "r0", "process": process}],
        }
        with live(pools=[pool]) as (app, session):
            core = app.daemon.core

            def leases() -> int:
                return app.call(lambda: len(core.pools["home"].leases))

            def starts() -> int:
                return app.log.getvalue().count('"event":"replica_ready"')

            for _ in range(size):
                before = starts()
                bodies = [task(ctx=256, max_tokens=TOKENS) for _ in range(2 * SLOTS)]
                answers = at_once(app.url, "POST", (("/v1/tasks", body) for body in bodies))
                assert {answer.status for answer in answers} == {202}
                wait_for(lambda: leases() == SLOTS, "all run", 30)
                os.kill(app.call(app.daemon.replicas.all_pids)[0], signal.SIGKILL)
                ids = [str(body["task_id"]) for body in bodies]
                wait_for(lambda ids=ids: app.call(lambda: all(core.tasks[i].terminal for i in ids)), "all end", 120)
                wait_for(lambda: leases() == 0, "no slot is left", 30)
                for task_id in ids:
                    final = session.get(f"/v1/tasks/{task_id}").json()
                    ends[final["error"]["code"] if "error" in final else final["state"]] += 1
                wait_for(lambda: session.get("/readyz").status_code == 200, "it is back", 60)
                most = max(most, starts() - before)
    assert set(ends) <= {"ended", "WORKER_RESET"}, ends
    assert ends["WORKER_RESET"], "the kill met nobody"
    assert 1 <= most <= 3, f"{most} starts"
    told = ", ".join(f"{count:,} {name}" for name, count in sorted(ends.items()))
    return Seen(size, f"{2 * size * SLOTS:,} tasks: {told}; stuck 0; back after at most {most} start{'s' * (most > 1)}")


# -- D11, D12: one connection for many -----------------------------------------------------------------------
class Echo:
    """A server that answers each request with its own path, after a while, and now and then with too much."""

    def __init__(self, seed: int, stray: float) -> None:
        self._draw = Random(seed)
        self._stray = stray
        self.strays = 0
        self.serving: set[asyncio.Future[None]] = set()

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        one = asyncio.ensure_future(self._serve(reader, writer))
        self.serving.add(one)
        one.add_done_callback(self.serving.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                path = (await reader.readuntil(b"\r\n\r\n")).split(b" ")[1]
                for _ in range(self._draw.randrange(4)):
                    await SystemClock().sleep(0)
                answer = self._answer(path)
                if self._draw.random() < self._stray:
                    self.strays += 1
                    answer += self._answer(b"/somebody-elses")
                cut = self._draw.randrange(len(answer))
                writer.write(answer[:cut])
                await SystemClock().sleep(0)
                writer.write(answer[cut:])
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            writer.close()

    @staticmethod
    def _answer(path: bytes) -> bytes:
        data = json.dumps({"path": path.decode()}).encode()
        return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(data), data)


async def _cross_talk(size: int, *, stray: float = 0.0, leave: float = 0.0) -> tuple[Counter[str], int]:
    """Requests on connections that are kept, some of them left at any point; what came of each, and stray answers."""
    echo, draw, clock = Echo(11, stray), Random(12), SystemClock()
    server = await asyncio.start_server(echo.accept, "127.0.0.1", 0)
    transport = Transport(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", clock=clock)
    seen: Counter[str] = Counter()

    async def client(name: int) -> None:
        for number in range(size // 8):
            path = f"/{name}/{number}"
            asked = asyncio.ensure_future(transport.request_json("GET", path, limit_s=30))
            if draw.random() < leave:
                for _ in range(draw.randrange(8)):
                    await clock.sleep(0)
                asked.cancel()
            try:
                status, answer, _ = await asked
            except asyncio.CancelledError:
                seen["left"] += 1
            except EngineError:
                seen["refused"] += 1
            else:
                seen["own" if (status, answer) == (200, {"path": path}) else "ANOTHER'S"] += 1

    try:
        await asyncio.gather(*(client(name) for name in range(8)))
    finally:
        await transport.close()
        await asyncio.gather(*echo.serving)
        server.close()
    return seen, echo.strays


@row("D11", "bytes of another answer behind one of ten on a kept connection", "another's answer 0", 2_000, 100_000)
def stray(size: int) -> Seen:
    passing("engines/test_transport.py::test_stray_bytes_are_not_the_next_answer")
    seen, strays = asyncio.run(_cross_talk(size, stray=0.1))
    assert not seen["ANOTHER'S"], seen
    assert seen["own"] >= size * 0.8, seen
    return Seen(size, f"{strays:,} stray answers; {seen['own']:,} got their own, another's 0")


@row("D12", "leaving at any point between request and answer (half of them)", "another's answer 0", 2_000, 20_000)
def leaving(size: int) -> Seen:
    passing("engines/test_transport.py::test_leaving_early_closes_the_connection")
    seen, _ = asyncio.run(_cross_talk(size, leave=0.5))
    assert not seen["ANOTHER'S"], seen
    assert seen["left"] >= size * 0.25, seen
    return Seen(size, f"{seen['left']:,} left, {seen['own']:,} got their own, another's 0")
