"""`artifacts`: transcripts and what clients stored."""

from __future__ import annotations

import argparse
import json
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from orchestratord.cli.command import Commands, client_command, items
from orchestratord.cli.output import show, table
from orchestratord.client import Client


def register(commands: Commands) -> None:
    group = commands.add_parser("artifacts", help="Transcripts and stored documents", description="Stored documents.")
    actions = group.add_subparsers(dest="action", required=True, metavar="ACTION")
    parser = client_command(actions, "list", _list, "List artifacts, newest first")
    parser.add_argument("--tag", help="only those with this tag, as task:<id> or session:<id>")
    parser.add_argument("--all", action="store_true", help="every page, not only the first")
    parser = client_command(actions, "show", _show, "Show an artifact; of a transcript the text")
    parser.add_argument("id", help="an artifact's id, or a task's for its transcript")


def _list(client: Client, arguments: argparse.Namespace) -> int:
    path = "/v1/artifacts" + (f"?tag={quote(arguments.tag, safe='')}" if arguments.tag else "")
    found = items(client, path) if arguments.all else client.call("GET", path)["items"]
    return show(arguments, found, lambda: _table(found))


def _table(found: list[dict[str, Any]]) -> str:
    rows = [(a["id"], a["kind"], _time(a["created_ms"]), " ".join(a["tags"])) for a in found]
    return table(("ARTIFACT", "KIND", "CREATED", "TAGS"), rows) if rows else "There are no artifacts."


def _time(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _show(client: Client, arguments: argparse.Namespace) -> int:
    artifact_id = arguments.id
    if "-" in artifact_id:
        artifact_id = client.task(artifact_id).get("transcript_id", artifact_id)
    artifact = client.call("GET", f"/v1/artifacts/{quote(artifact_id, safe='')}")
    return show(arguments, artifact, lambda: _text(artifact["content"]))


def _text(content: Any) -> str:
    if isinstance(content, dict) and str(content.get("schema", "")).startswith("orchestratord.transcript/"):
        return str(content["text"])
    return json.dumps(content, indent=2, ensure_ascii=False)
