"""`pools`, `drain`, `resume`, `reload`: what serves, and taking it out of service and back."""

from __future__ import annotations

import argparse
import threading
from typing import Any
from urllib.parse import quote

from orchestratord.cli.command import FAILED, Commands, client_command, seconds
from orchestratord.cli.output import complain, show, table
from orchestratord.client import Client

POLL_S = 0.25


def register(commands: Commands) -> None:
    parser = client_command(commands, "pools", _pools, "List the pools, or show one in full")
    parser.add_argument("pool", nargs="?")
    drain = client_command(commands, "drain", _drain, "Stop dispatching to a pool; what runs may finish")
    drain.add_argument("pool")
    drain.add_argument("--deadline-s", type=seconds, default=60.0, help="then what still runs is ended (default 60)")
    resume = client_command(commands, "resume", _resume, "Let a drained pool take work again")
    resume.add_argument("pool")
    reload = client_command(commands, "reload", _reload, "Serve another model; any failure keeps the old one")
    reload.add_argument("pool")
    reload.add_argument("model", help="model_ref, as file:/path/to/model.gguf")
    for parser in (drain, resume, reload):
        parser.add_argument("--no-wait", action="store_true", help="return as soon as it is accepted")


def overview(pools: list[dict[str, Any]]) -> str:
    if not pools:
        return "No pools are configured: nothing can be served. See docs/configuration.md, or try `orchestratord demo`."
    rows = []
    for pool in pools:
        queue = pool["queue"]
        waiting = f"{queue['interactive']}+{queue['batch']}/{queue['capacity']}"
        slots = f"{pool['slots_busy']}/{pool['slots_total']}"
        rows.append((pool["id"], _state(pool), pool["engine"], slots, waiting, pool["model_ref"]))
    return table(("POOL", "STATE", "ENGINE", "SLOTS", "WAITING", "MODEL"), rows)


def _state(pool: dict[str, Any]) -> str:
    return "ready" if pool["ready"] else "draining" if pool["draining"] else "loading" if pool["live"] else "down"


def _path(arguments: argparse.Namespace) -> str:
    return f"/v1/pools/{quote(arguments.pool, safe='')}"


def _pools(client: Client, arguments: argparse.Namespace) -> int:
    if arguments.pool is None:
        pools = client.pools()
        return show(arguments, pools, lambda: overview(pools))
    health = client.call("GET", f"{_path(arguments)}/health")
    return show(arguments, health, lambda: _whole(arguments.pool, health))


def _whole(pool_id: str, health: dict[str, Any]) -> str:
    queue = health["queue"]
    lines = [
        f"{pool_id}: {_state(health)}, {health['engine']} {health.get('engine_version', '')}, {health['model_ref']}",
        f"slots {health['slots_busy']} of {health['slots_total']} busy, waiting {queue['interactive']} interactive and "
        f"{queue['batch']} batch of {queue['capacity']}",
    ]
    for replica in health["replicas"]:
        state = "ready" if replica["ready"] else replica.get("reason", "not ready")
        lines.append(f"  {replica['id']}: {state}")
    if error := health.get("last_error"):
        lines.append(f"last error: {error['code']}: {error['message']}")
        lines += [f"  | {line}" for line in error.get("log_tail", [])]
    if operation := health.get("operation"):
        lines.append(f"last operation: {operation['kind']} {operation['state']}")
    return "\n".join(lines)


def _drain(client: Client, arguments: argparse.Namespace) -> int:
    return _operate(client, arguments, "drain", {"deadline_ms": int(arguments.deadline_s * 1000)})


def _resume(client: Client, arguments: argparse.Namespace) -> int:
    return _operate(client, arguments, "resume", None)


def _reload(client: Client, arguments: argparse.Namespace) -> int:
    return _operate(client, arguments, "reload", {"new_model_ref": arguments.model})


def _operate(client: Client, arguments: argparse.Namespace, kind: str, body: dict[str, Any] | None) -> int:
    """Start an operation and, unless told otherwise, stay until it is over."""
    operation = client.call("POST", f"{_path(arguments)}/{kind}", body)
    pause = threading.Event()
    while not arguments.no_wait and "ended_at_ms" not in operation:
        pause.wait(POLL_S)
        latest = client.call("GET", f"{_path(arguments)}/health").get("operation", operation)
        if latest["operation_id"] != operation["operation_id"]:
            return complain(f"another operation followed: {latest['kind']} is {latest['state']}", FAILED)
        operation = latest
    show(arguments, operation, lambda: f"{kind} of {arguments.pool}: {operation['state']}")
    if operation["state"] in ("failed", "rolled_back"):
        error = operation.get("error", {})
        return complain(f"{error.get('code')}: {error.get('message')}", FAILED)
    return 0
