"""`models`: the catalog."""

from __future__ import annotations

import argparse
from typing import Any
from urllib.parse import quote

from orchestratord.cli.command import Commands, client_command, items, seconds
from orchestratord.cli.output import show, table
from orchestratord.client import Client

PATH = "/v1/catalog/models"


def register(commands: Commands) -> None:
    group = commands.add_parser("models", help="The catalog of models", description="The catalog of models.")
    actions = group.add_subparsers(dest="action", required=True, metavar="ACTION")
    parser = client_command(actions, "list", _list, "List the models of the catalog")
    parser.add_argument("--state", choices=["Active", "Retired"])
    for name, call, summary in (
        ("show", _show, "Show a model in full"),
        ("verify", _verify, "Start checking a model's digest, signatures and SBOM"),
        ("delete", _delete, "Remove a model that nothing uses"),
    ):
        parser = client_command(actions, name, call, summary)
        parser.add_argument("id")
    parser = client_command(actions, "retire", _retire, "Retire a model; pools that use it are drained")
    parser.add_argument("id")
    parser.add_argument("--deadline-s", type=seconds, default=60.0, help="for what still runs on it (default 60)")
    parser = client_command(actions, "activate", _activate, "Take a retired model back")
    parser.add_argument("id")
    parser = client_command(actions, "add", _add, "Add a model to the catalog")
    parser.add_argument("id")
    parser.add_argument("source_url", help="file:, hf:, https:, s3: or oci: reference")
    parser.add_argument("--digest", help="sha256:<64 hex>: content that differs is refused")
    parser.add_argument("--tag", action="append", default=[])


def _list(client: Client, arguments: argparse.Namespace) -> int:
    found = items(client, PATH + (f"?state={arguments.state}" if arguments.state else ""))
    return show(arguments, found, lambda: _table(found))


def _table(found: list[dict[str, Any]]) -> str:
    rows = [(m["id"], m["state"], m.get("verification", {}).get("status", ""), m["source_url"]) for m in found]
    return table(("MODEL", "STATE", "VERIFIED", "SOURCE"), rows) if rows else "The catalog is empty."


def _path(arguments: argparse.Namespace) -> str:
    return f"{PATH}/{quote(arguments.id, safe='')}"


def _show(client: Client, arguments: argparse.Namespace) -> int:
    model = client.call("GET", _path(arguments))
    return show(arguments, model, lambda: "\n".join(f"{name}: {value}" for name, value in model.items()))


def _verify(client: Client, arguments: argparse.Namespace) -> int:
    answer = client.call("POST", f"{_path(arguments)}/verify")
    return show(arguments, answer, lambda: f"{arguments.id}: verification started; `models show` has the outcome")


def _delete(client: Client, arguments: argparse.Namespace) -> int:
    client.call("DELETE", _path(arguments))
    return show(arguments, {}, lambda: f"{arguments.id} is deleted")


def _retire(client: Client, arguments: argparse.Namespace) -> int:
    body = {"state": "Retired", "deadline_ms": int(arguments.deadline_s * 1000)}
    answer = client.call("POST", f"{_path(arguments)}/state", body)
    return show(arguments, answer, lambda: f"{arguments.id} is retired")


def _activate(client: Client, arguments: argparse.Namespace) -> int:
    answer = client.call("POST", f"{_path(arguments)}/state", {"state": "Active"})
    return show(arguments, answer, lambda: f"{arguments.id} is active")


def _add(client: Client, arguments: argparse.Namespace) -> int:
    body = {"id": arguments.id, "source_url": arguments.source_url, "tags": arguments.tag}
    if arguments.digest:
        body["digest"] = arguments.digest
    model = client.call("POST", PATH, body)
    return show(arguments, model, lambda: f"{arguments.id} is in the catalog")
