"""`verify`: does a running daemon keep its contracts?"""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

from orchestratord.cli.command import FAILED, UNAVAILABLE, USAGE, Commands, command, token
from orchestratord.cli.output import complain


def register(commands: Commands) -> None:
    parser = command(commands, "verify", _verify, "Check that a running daemon keeps its contracts (extra `testing`)")
    parser.add_argument("url", help="http://host:port")
    parser.add_argument("--token", metavar="FILE", type=Path, help="a file with the token; default: AUTH_TOKEN")
    parser.add_argument("--model-ref", help="model of the one small task; by default the first ready pool's")
    parser.add_argument("--json", action="store_true", help="a report for scripts")


def _verify(arguments: argparse.Namespace) -> int:
    try:  # by name: the kit stands above the command line, and its libraries are an extra
        provider = importlib.import_module("orchestratord.testing.provider")
    except ImportError as error:
        return complain(f"{error.name} is missing: pip install 'orchestratord[testing]'", USAGE)
    try:
        report = provider.inspect(arguments.url, token(arguments.token), arguments.model_ref)
    except ValueError as error:
        return complain(str(error), USAGE)
    except OSError as error:  # of requests too
        return complain(f"no daemon answers at {arguments.url} ({error})", UNAVAILABLE)
    print(report.json() if arguments.json else "\n".join(report.table()))
    return FAILED if report.failed else 0
