"""What a command is: its exit codes, its flags, and how it asks a daemon."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from orchestratord.cli.output import complain
from orchestratord.client import Client, ServerError, Unreachable

FAILED, USAGE, UNAVAILABLE, TRY_LATER, NO_PERMISSION, BAD_CONFIG, INTERRUPTED = 1, 2, 69, 75, 77, 78, 130
DEFAULT_URL = "http://127.0.0.1:8080"

Commands = Any  # what add_subparsers gives
Call = Callable[[argparse.Namespace], int]
PAGE = 200
WEEK_S = 7 * 86_400


def seconds(text: str) -> float:
    """The type of a flag that takes a time. Raises ArgumentTypeError."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= WEEK_S:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds above 0 and up to a week")
    return value


def token(file: Path | None) -> str | None:
    """The token in `--token FILE`, else AUTH_TOKEN, as the daemon reads them. Raises ValueError without it."""
    try:
        given = file.read_text("utf-8") if file is not None else os.environ.get("AUTH_TOKEN")
    except UnicodeDecodeError:
        raise ValueError(f"the token file {file} cannot be read: it is not text") from None
    except OSError as error:
        raise ValueError(f"the token file {file} cannot be read: {error.strerror}") from None
    if given is None:
        return None
    if not (given := given.strip()).isprintable():  # a library would quote it when it refuses
        raise ValueError("the token has a line break or another control character in it")
    return given


def command(commands: Commands, name: str, call: Call, summary: str, **more: Any) -> argparse.ArgumentParser:
    """A command that runs here."""
    parser: argparse.ArgumentParser = commands.add_parser(name, help=summary, description=f"{summary}.", **more)
    parser.set_defaults(call=call)
    return parser


def client_command(
    commands: Commands, name: str, call: Callable[[Client, argparse.Namespace], int], summary: str
) -> argparse.ArgumentParser:
    """A command that asks a daemon: `--url`, `--token`, `--json`, and every failure told in one way."""
    parser = command(commands, name, lambda arguments: _asking(call, arguments), summary)
    parser.add_argument("--url", default=os.environ.get("ORCHD_URL", DEFAULT_URL), help="default: ORCHD_URL")
    parser.add_argument("--token", metavar="FILE", type=Path, help="a file with the token; default: AUTH_TOKEN")
    parser.add_argument("--json", action="store_true", help="print what the daemon answered, for scripts")
    return parser


def _asking(call: Callable[[Client, argparse.Namespace], int], arguments: argparse.Namespace) -> int:
    try:
        return call(Client(arguments.url, token(arguments.token)), arguments)
    except ValueError as error:
        return complain(str(error), USAGE)
    except ServerError as error:
        return refused(error)
    except Unreachable as error:
        hint = "Start one with `orchestratord serve`, or name another with --url."
        return complain(f"no daemon answers at {arguments.url} ({error}). {hint}", UNAVAILABLE)


def refused(error: ServerError) -> int:
    """Say what the daemon said, and what to do where it is not clear by itself."""
    if error.status in (401, 403):
        hint = " Set AUTH_TOKEN to the daemon's token, or name a file with --token." if error.status == 401 else ""
        return complain(f"{error.code}: {error.envelope.get('message')}{hint}", NO_PERMISSION)
    wait_ms = error.envelope.get("retry_after_ms")
    wait = f" (in {wait_ms / 1000:.1f} s)" if wait_ms is not None else ""
    code = TRY_LATER if error.envelope.get("retriable") else FAILED
    return complain(f"{error.code}: {error.envelope.get('message')}{wait}", code)


def items(client: Client, path: str) -> list[dict[str, Any]]:
    """Everything of a list, page by page."""
    found: list[dict[str, Any]] = []
    mark = "&" if "?" in path else "?"
    cursor = ""
    while True:
        page = client.call("GET", f"{path}{mark}limit={PAGE}{cursor}")
        found += page["items"]
        if page["next_cursor"] is None:
            return found
        cursor = f"&cursor={page['next_cursor']}"
