"""`status`: the pools and the newest tasks at a glance, once or again and again."""

from __future__ import annotations

import argparse
import threading
from typing import Any

from orchestratord.cli.command import Commands, client_command, seconds
from orchestratord.cli.output import show, table
from orchestratord.cli.pools import overview
from orchestratord.client import Client


def register(commands: Commands) -> None:
    parser = client_command(commands, "status", _status, "Show pools, queues and the newest tasks of a running daemon")
    parser.add_argument("-w", "--watch", action="store_true", help="again and again, until interrupted")
    parser.add_argument("--interval-s", type=seconds, default=2.0, help="between two looks (default 2)")
    parser.add_argument("--tasks", type=int, default=10, metavar="N", help="how many tasks to show (default 10)")


def _status(client: Client, arguments: argparse.Namespace) -> int:
    if not arguments.watch:
        return _once(client, arguments)
    pause = threading.Event()
    while True:
        if not arguments.json:
            print("\x1b[H\x1b[2J", end="")
        _once(client, arguments)
        pause.wait(max(0.2, arguments.interval_s))


def _once(client: Client, arguments: argparse.Namespace) -> int:
    pools = client.pools()
    tasks = client.call("GET", f"/v1/tasks?limit={min(200, arguments.tasks)}")["items"] if arguments.tasks > 0 else []
    return show(arguments, {"pools": pools, "tasks": tasks}, lambda: _text(pools, tasks))


def _text(pools: list[dict[str, Any]], tasks: list[dict[str, Any]]) -> str:
    parts = [overview(pools)]
    if tasks:
        rows = [(t["task_id"], _state(t), t["priority"], t.get("pool_id", ""), t.get("tokens_out", "")) for t in tasks]
        parts.append(table(("TASK", "STATE", "PRIORITY", "POOL", "TOKENS"), rows))
    return "\n\n".join(parts)


def _state(task: dict[str, Any]) -> str:
    if task["state"] == "queued":
        why = task.get("waiting_for")
        return f"queued at {task['queue_position']}" + (f", for {why}" if why else "")
    if "error" in task:
        return f"failed: {task['error']['code']}"
    return str(task["state"])
