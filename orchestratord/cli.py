"""The command line: `serve`, `run`, `status`, `verify`, `config`."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

from orchestratord import __version__

# sysexits.h, so that scripts can tell what to do next
USAGE, UNAVAILABLE, TRY_LATER, NO_PERMISSION, BAD_CONFIG = 2, 69, 75, 77, 78
DEFAULT_URL = "http://127.0.0.1:8080"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="orchestratord",
        description="Queue, place and stream work on local LLM engines.",
        epilog="A first look: `orchestratord serve`, then `orchestratord status`; every command has -h.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    serve = commands.add_parser("serve", help="run the daemon (zero configuration: 127.0.0.1:8080)")
    serve.add_argument("-c", "--config", type=Path, help="TOML or YAML file; without it the defaults serve")
    serve.add_argument("--port", type=int, help="overrides server.port; 0 picks a free one")

    run = commands.add_parser("run", help="submit a prompt and stream the answer")
    run.add_argument("prompt")
    run.add_argument("--model", help="model_ref; by default the first ready pool")
    run.add_argument("--max-tokens", type=int, default=256)
    run.add_argument("--seed", type=int)
    run.add_argument("--raw", action="store_true", help="send the prompt as it is, without the model's chat template")
    run.add_argument("--batch", action="store_true", help="priority batch instead of interactive")
    run.add_argument("--deadline-s", type=float, default=300.0)

    commands.add_parser("status", help="show the pools of a running daemon")

    verify = commands.add_parser("verify", help="check that a running daemon keeps its contracts (extra `testing`)")
    verify.add_argument("url", help="http://host:port")
    verify.add_argument("--token", default=os.environ.get("AUTH_TOKEN"), help="by default AUTH_TOKEN")
    verify.add_argument("--model-ref", help="model of the one small task; by default the first ready pool's")
    verify.add_argument("--json", action="store_true", help="a report for programs")

    config = commands.add_parser("config", help="check a configuration file, or print its JSON Schema")
    config.add_argument("action", choices=["check", "schema"])
    config.add_argument("file", nargs="?", type=Path)

    for client in (run, commands.choices["status"]):
        client.add_argument("--url", default=os.environ.get("ORCHD_URL", DEFAULT_URL))

    arguments = parser.parse_args(argv)
    table = {"serve": _serve, "run": _run, "status": _status, "verify": _verify, "config": _config}
    return table[arguments.command](arguments)


def _complain(text: str, code: int) -> int:
    print(f"orchestratord: {text}", file=sys.stderr)
    return code


def _serve(arguments: argparse.Namespace) -> int:
    from orchestratord import config

    environ = {k: v for k, v in os.environ.items() if k != "ORCHD_URL"}
    if arguments.port is not None:
        environ["ORCHD_SERVER__PORT"] = str(arguments.port)
    try:
        settings = config.load(arguments.config, environ)
        warnings.simplefilter("ignore", DeprecationWarning)  # Connexion's imports; a user can do nothing about them
        from orchestratord.app import Daemon
        from orchestratord.server import CannotListen, make_server

        daemon = Daemon(settings)
    except config.ConfigError as error:
        return _complain(str(error), BAD_CONFIG)

    # The journal's writer thread would starve under a loop that never idles: Python lets go of its lock every 5 ms.
    sys.setswitchinterval(0.0005)
    try:
        make_server(daemon).run()
    except CannotListen as error:
        return _complain(str(error), UNAVAILABLE)
    except SystemExit as error:  # uvicorn's way to say that the lifespan did not start
        if daemon.failure is not None:
            return _complain(daemon.failure, UNAVAILABLE)
        return _complain("could not start; see the log above", int(error.code or 1))
    return 0


def _client(arguments: argparse.Namespace) -> Any:
    from orchestratord.client import Client

    return Client(arguments.url, os.environ.get("AUTH_TOKEN"))


def _reach(arguments: argparse.Namespace, error: OSError) -> int:
    return _complain(
        f"no daemon answers at {arguments.url} ({error}). Start one with `orchestratord serve`.", UNAVAILABLE
    )


def _refused(error: Any) -> int:
    code = NO_PERMISSION if error.status in (401, 403) else TRY_LATER if error.envelope.get("retriable") else 1
    return _complain(f"{error.code}: {error.envelope.get('message')}", code)


def _status(arguments: argparse.Namespace) -> int:
    from orchestratord.client import ServerError

    try:
        pools = _client(arguments).pools()
    except ServerError as error:
        return _refused(error)
    except OSError as error:
        return _reach(arguments, error)
    if not pools:
        print("No pools are configured. See docs/configuration.md.")
    for pool in pools:
        state = "ready" if pool["ready"] else "draining" if pool["draining"] else "loading" if pool["live"] else "down"
        queue = pool["queue"]
        print(
            f"{pool['id']:<16} {state:<9} {pool['engine']:<9} slots {pool['slots_busy']}/{pool['slots_total']}"
            f"  waiting {queue['interactive']}+{queue['batch']}/{queue['capacity']}  {pool['model_ref']}"
        )
    return 0


def _run(arguments: argparse.Namespace) -> int:
    from orchestratord.client import ServerError

    client = _client(arguments)
    try:
        pools = client.pools()
        pool = next((p for p in pools if arguments.model in (None, p["model_ref"], p["id"]) and p["ready"]), None)
        if pool is None:
            return _complain("no pool is ready for this; `orchestratord status` shows them", TRY_LATER)
        fields: dict[str, Any] = {
            "workload": "completion",
            "model_ref": arguments.model or pool["model_ref"],
            "engine": pool["engine"],
            "ctx": arguments.max_tokens + len(arguments.prompt.encode()) + 64,
            "max_tokens": arguments.max_tokens,
            "priority": "batch" if arguments.batch else "interactive",
            "deadline_ms": int(arguments.deadline_s * 1000),
        }
        if arguments.seed is not None:
            fields["seed"] = arguments.seed
        return _follow(client, _submit(client, arguments, fields))
    except ServerError as error:
        return _refused(error)
    except OSError as error:
        return _reach(arguments, error)


def _submit(client: Any, arguments: argparse.Namespace, fields: dict[str, Any]) -> dict[str, Any]:
    """Through the model's chat template if it has one, else (or with --raw) as plain text to continue."""
    from orchestratord.client import ServerError

    admission: dict[str, Any]
    if not arguments.raw:
        try:
            admission = client.submit(**fields, messages=[{"role": "user", "content": arguments.prompt}])
        except ServerError as error:
            if error.envelope.get("details", {}).get("rule") != "no_chat_template":
                raise
        else:
            return admission
    admission = client.submit(**fields, prompt=arguments.prompt)
    return admission


def _follow(client: Any, admission: dict[str, Any]) -> int:
    """Print the answer as it comes; one live progress line on a terminal until then."""
    live = sys.stderr.isatty()
    begun = time.monotonic()
    first: float | None = None
    task_id = admission["task_id"]
    try:
        for event in client.stream(task_id):
            if event.name == "token":
                if first is None:
                    first = time.monotonic()
                    if live:
                        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
                print(event.data["t"], end="", flush=True)
            elif first is None and live:
                _progress(event, admission)
            elif event.name == "error":
                print()
                return _complain(f"{event.data['code']}: {event.data['message']}", 1)
            elif event.name == "end":
                print()
                seconds = time.monotonic() - (first or begun)
                rate = event.data["tokens_out"] / seconds if seconds > 0 else 0.0
                print(
                    f"[{event.data['tokens_out']} tokens, {event.data['finish_reason']}, first after "
                    f"{((first or begun) - begun) * 1000:.0f} ms, {rate:.1f} tokens/s]",
                    file=sys.stderr,
                )
    except KeyboardInterrupt:
        client.cancel(task_id)
        print()
        return _complain("canceled", 130)
    return 0


def _progress(event: Any, admission: dict[str, Any]) -> None:
    data = event.data
    start_ms = data.get("predicted_start_ms", admission["predicted_start_ms"])
    position = data.get("queue_position", admission["queue_position"])
    line = f"position {position}, expected to start in {start_ms / 1000:.1f} s"
    print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)


def _verify(arguments: argparse.Namespace) -> int:
    """0: every answer was as declared; 1: not so; 69: nobody answers."""
    try:  # by name: the kit stands above the command line, and its libraries are an extra
        provider = importlib.import_module("orchestratord.testing.provider")
    except ImportError as error:
        return _complain(f"{error.name} is missing: pip install 'orchestratord[testing]'", USAGE)
    try:
        report = provider.inspect(arguments.url, arguments.token, arguments.model_ref)
    except ValueError as error:
        return _complain(str(error), USAGE)
    except OSError as error:  # of requests too
        return _reach(arguments, error)
    print(report.json() if arguments.json else "\n".join(report.table()))
    return 1 if report.failed else 0


def _config(arguments: argparse.Namespace) -> int:
    from orchestratord import config

    if arguments.action == "schema":
        print(json.dumps(config.json_schema(), indent=2))
        return 0
    try:
        settings = config.load(arguments.file)
        warnings.simplefilter("ignore", DeprecationWarning)  # as in _serve
        from orchestratord.app import drivers

        drivers(settings)
    except config.ConfigError as error:
        return _complain(str(error), BAD_CONFIG)
    print(f"ok: {len(settings.pools)} pools, data in {settings.data_path}")
    return 0
