"""Who is measured: how each is found and started, and how it is asked for a stream.

Peers live in environments of their own (`python -m benchmarks.prepare`); one that is not there is left out and said
to be absent. All of them listen on 127.0.0.1 only, and stand before the same engine.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from asyncio.subprocess import DEVNULL
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks import load
from benchmarks.processes import CLOCK, free_port, running

HOME = Path(os.environ.get("BENCH_PEERS", Path(__file__).parents[1] / ".tox" / "peers"))
SLOW_START_S = 120.0  # LiteLLM imports for half a minute
POLL_S = 0.1

Ask = Callable[[load.Connection, str, int], Awaitable[load.Answer]]


@dataclass(frozen=True)
class Peer:
    """One server that runs. `ask(connection, prompt, tokens)` gives its stream, `check` what it must hold."""

    name: str
    pid: int
    port: int
    engine: int  # the port of the engine behind it
    ask: Ask
    check: Callable[[bytes, int], None] = load.check_frames


@dataclass(frozen=True)
class Known:
    """A peer that may be installed. `command(program, port, engine, folder)` starts it."""

    name: str
    version: str
    program: Callable[[], str | None]
    command: Callable[[str, int, int, Path], list[str]]
    env: dict[str, str]
    ask: Ask


async def ask_chat(connection: load.Connection, prompt: str, tokens: int) -> load.Answer:
    messages = [{"role": "user", "content": prompt}]
    body = {"model": "fake", "stream": True, "max_tokens": tokens, "messages": messages}
    return connection.ask("POST", "/v1/chat/completions", body)


async def ask_llama(connection: load.Connection, prompt: str, tokens: int) -> load.Answer:
    return connection.ask("POST", "/completion", {"prompt": prompt, "n_predict": tokens, "stream": True})


async def ask_daemon(connection: load.Connection, prompt: str, tokens: int) -> load.Answer:
    """Both steps: the task, then its events. The answer counts from the first one."""
    body = load.task("work", prompt, tokens, "interactive")
    admission = connection.ask("POST", "/v1/tasks", body)
    await admission.whole(202)
    answer = connection.ask("GET", f"/v1/tasks/{body['task_id']}/stream")
    answer.asked_ns = admission.asked_ns
    return answer


# -- those of others --------------------------------------------------------------------------------------------
NGINX = """
daemon off; master_process off; worker_processes 1; worker_rlimit_nofile 16384;
pid {folder}/nginx.pid; error_log {folder}/error.log warn;
events {{ worker_connections 8192; use epoll; }}
http {{
  access_log off; tcp_nodelay on; keepalive_requests 1000000;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  upstream engine {{ server 127.0.0.1:{engine}; keepalive 512; keepalive_requests 1000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{
      proxy_pass http://engine; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_buffering off; proxy_request_buffering off; proxy_read_timeout 600s;
    }}
  }}
}}
"""
LITELLM = """
model_list:
  - model_name: fake
    litellm_params: {{model: openai/fake, api_base: "http://127.0.0.1:{engine}/v1", api_key: none}}
litellm_settings: {{telemetry: false}}
general_settings: {{disable_spend_logs: true}}
"""


def nginx(program: str, port: int, engine: int, folder: Path) -> list[str]:
    """One process that passes bytes on as they come: proxy_buffering is off."""
    (folder / "nginx.conf").write_text(NGINX.format(folder=folder, port=port, engine=engine))
    return [program, "-p", str(folder), "-c", str(folder / "nginx.conf")]


def vllm_router(program: str, port: int, engine: int, folder: Path) -> list[str]:
    listen = ["--host", "127.0.0.1", "--port", str(port)]
    metrics = ["--prometheus-host", "127.0.0.1", "--prometheus-port", str(free_port())]
    workers = ["--worker-urls", f"http://127.0.0.1:{engine}", "--worker-startup-check-interval", "1"]
    return [program, *listen, *metrics, *workers, "--policy", "round_robin", "--log-level", "warning"]


def litellm(program: str, port: int, engine: int, folder: Path) -> list[str]:
    """One worker, no database, no key, logging of errors only: its cheapest setting."""
    (folder / "litellm.yaml").write_text(LITELLM.format(engine=engine))
    listen = ["--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
    return [program, "--config", str(folder / "litellm.yaml"), *listen, "--telemetry", "False"]


LITELLM_ENV = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_MODE": "PRODUCTION",
    "LITELLM_LOG": "ERROR",
    "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
}


def _in_venv(name: str) -> Callable[[], str | None]:
    return lambda: shutil.which(name, path=str(HOME / name / "bin"))


def _nginx() -> str | None:
    unpacked = HOME / "nginx" / "usr" / "sbin"
    return shutil.which("nginx", path=os.pathsep.join((str(unpacked), os.environ.get("PATH", ""), "/usr/sbin")))


KNOWN = (
    Known("nginx", "Debian's", _nginx, nginx, {}, ask_chat),
    Known("vllm-router", "0.1.17", _in_venv("vllm-router"), vllm_router, {}, ask_chat),
    Known("litellm", "1.106.2", _in_venv("litellm"), litellm, LITELLM_ENV, ask_chat),
)


@asynccontextmanager
async def started(known: Known, engine: int) -> AsyncIterator[Peer]:
    """The peer before this engine, once it has answered a request. Raises load.Wrong."""
    program = known.program()
    assert program is not None
    port = free_port()
    with tempfile.TemporaryDirectory(prefix=f"bench-{known.name}-") as folder:
        command = known.command(program, port, engine, Path(folder))
        async with running(*command, stdout=DEVNULL, stderr=DEVNULL, env=known.env) as process:
            peer = Peer(known.name, process.pid, port, engine, known.ask)
            try:
                async with CLOCK.limit(SLOW_START_S):
                    while not await _answers(peer):
                        if process.returncode is not None:
                            raise load.Wrong(f"{known.name} ended with code {process.returncode}")
                        await CLOCK.sleep(POLL_S)
            except TimeoutError:
                raise load.Wrong(f"{known.name} answers no request") from None
            yield peer


async def _answers(peer: Peer) -> bool:
    try:
        async with load.connections(peer.port, 1) as (connection,):
            answer = await peer.ask(connection, "ping", 1)
            peer.check(await answer.whole(200), 1)
    except (OSError, load.Wrong):
        return False
    return True
