"""The command line. One module per group of commands; each adds its parsers and names the function that runs one.

Only the module of the command asked for is imported: all together take 60 ms of CPU more.

Exit codes are those of sysexits.h, so that scripts can tell what to do next: see `EXIT_CODES`.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import io
import os
import sys
from contextlib import suppress

from orchestratord import __version__
from orchestratord.cli.command import FAILED, INTERRUPTED
from orchestratord.cli.output import complain

GROUPS = {
    "serve": ("serve", "demo"),
    "run": ("run", "cancel"),
    "status": ("status",),
    "pools": ("pools", "drain", "resume", "reload"),
    "models": ("models",),
    "artifacts": ("artifacts",),
    "doctor": ("doctor",),
    "settings": ("config",),
    "verify": ("verify",),
    "completion": ("completion",),
}  # module: its commands

OUTPUT = (errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EIO)  # what writing to a pipe or a file may come to

EXIT_CODES = """exit codes:
  0 done   1 the work failed   2 wrong usage   69 no daemon answers, or it cannot start   75 try again later
  77 the token is missing or wrong   78 the configuration is wrong   130 interrupted

environment:
  ORCHD_URL   the daemon to talk to (default http://127.0.0.1:8080)   AUTH_TOKEN   its token
  ORCHD_CONFIG   the configuration file to serve with   ORCHD_SECTION__SETTING   overrides one setting

a first look:
  orchestratord doctor    what this machine has, and what it lacks
  orchestratord demo      a real model, from start to a streamed answer (needs the demo extra)
  orchestratord serve     then, in another terminal: orchestratord status --watch
"""


def build_parser(asked: str | None = None) -> argparse.ArgumentParser:
    """With every command, or only those of the module that has the one `asked` for."""
    parser = argparse.ArgumentParser(
        prog="orchestratord",
        description="Queue, place and stream work on local LLM engines.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    found = [module for module, names in GROUPS.items() if asked in names]
    for module in found or GROUPS:
        importlib.import_module(f"orchestratord.cli.{module}").register(commands)
    return parser


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    arguments = build_parser(argv[0] if argv else None).parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal that lacks a letter ends no command
    try:
        code: int = arguments.call(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except OSError as error:
        if error.errno not in OUTPUT or error.filename is not None:
            raise
        _discard_output()
        if isinstance(error, BrokenPipeError):  # the reader has had enough, as `head` does
            return 0
        return complain(f"the output cannot be written: {error.strerror}", FAILED)
    return code


def _discard_output() -> None:
    """What is still in the buffer would fail once more at the exit, loudly."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
