"""`completion`: what a shell needs to complete commands and flags."""

from __future__ import annotations

import argparse

import shtab

from orchestratord.cli.command import Commands, command


def register(commands: Commands) -> None:
    parser = command(commands, "completion", _completion, "Print a completion script, as for `source <(...)`")
    parser.add_argument("shell", choices=shtab.SUPPORTED_SHELLS)


def _completion(arguments: argparse.Namespace) -> int:
    from orchestratord.cli import build_parser

    print(shtab.complete(build_parser(), arguments.shell))
    return 0
