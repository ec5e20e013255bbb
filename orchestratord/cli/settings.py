"""`config`: check a file, show what is in force and where it comes from, print the schema."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from orchestratord import config
from orchestratord.cli import lean
from orchestratord.cli.command import BAD_CONFIG, Commands, command
from orchestratord.cli.exposure import exposed
from orchestratord.cli.output import complain, show, table
from orchestratord.cli.serve import config_file, environment
from orchestratord.infra.secrets import HIDDEN, hide_options, is_secret_name


def register(commands: Commands) -> None:
    group = commands.add_parser(
        "config", help="Check, show and describe the configuration", description="Configuration."
    )
    actions = group.add_subparsers(dest="action", required=True, metavar="ACTION")
    parser = command(actions, "check", _check, "Check a configuration file with the environment's overrides")
    parser.add_argument("file", nargs="?", type=Path)
    parser.add_argument("--json", action="store_true", help="for scripts")
    parser = command(actions, "show", _show, "Show every setting in force")
    parser.add_argument("file", nargs="?", type=Path)
    parser.add_argument("--origin", action="store_true", help="and where each comes from")
    parser.add_argument("--json", action="store_true", help="for scripts")
    command(actions, "schema", _schema, "Print the JSON Schema of the file, for editors")


def _schema(_: argparse.Namespace) -> int:
    print(json.dumps(config.json_schema(), indent=2))
    return 0


def _check(arguments: argparse.Namespace) -> int:
    path = config_file(arguments.file)
    try:
        settings = config.load(path, environment())
        lean.import_connexion()
        from orchestratord.app import drivers
        from orchestratord.mapping import tracing

        drivers(settings)
        tracing(settings)
    except config.ConfigError as error:
        return complain(str(error), BAD_CONFIG)
    warnings = [f"{found.seen}: {found.fix}" for found in exposed(settings, path, environment())]
    for warning in warnings:
        complain(f"warning: {warning}", 0)
    answer = {"ok": True, "file": str(path) if path else None, "pools": len(settings.pools)}
    return show(
        arguments,
        {**answer, "data_dir": str(settings.data_path), "warnings": warnings},
        lambda: f"ok: {path or 'no file'}, {len(settings.pools)} pools, data in {settings.data_path}",
    )


def _show(arguments: argparse.Namespace) -> int:
    path = config_file(arguments.file)
    try:
        found = in_force(path, environment())
    except config.ConfigError as error:
        return complain(str(error), BAD_CONFIG)
    answer = [{"setting": name, "value": value, "origin": origin} for name, value, origin in found]
    head = ("SETTING", "VALUE", "ORIGIN") if arguments.origin else ("SETTING", "VALUE")
    return show(arguments, answer, lambda: table(head, [(n, json.dumps(v), o)[: len(head)] for n, v, o in found]))


def in_force(path: Path | None, environ: Mapping[str, str]) -> list[tuple[str, Any, str]]:
    """(setting, value, origin) of everything. Secrets are named, never shown. Raises ConfigError."""
    settings = config.load(path, environ)
    raw = dict(_leaves(config.read_file(path))) if path is not None else {}
    env = {
        name.removeprefix("ORCHD_").lower().replace("__", "."): name for name in environ if name.startswith("ORCHD_")
    }
    rows = []
    for name, value in _leaves(msgspec.to_builtins(settings)):
        if name in ("token", "auth_optional"):
            token = "AUTH_TOKEN_FILE" if environ.get("AUTH_TOKEN_FILE") else "AUTH_TOKEN"
            variable = "AUTH_OPTIONAL" if name == "auth_optional" else token
            shown = value if name == "auth_optional" else ("set" if value else None)
            rows.append((name, shown, f"environment {variable}" if value else "default"))
            continue
        value = _shown(name, value)
        origin = f"file {path}" if name in raw else "default"
        origin = next((f"environment {env[key]}" for key in env if name == key or name.startswith(f"{key}.")), origin)
        rows.append((name, value, origin))
    return rows


def _shown(name: str, value: Any) -> Any:
    """A setting's value, or `set` for what nobody should see: secret variables of a child, passwords in an URL."""
    *_, section, key = ["", *name.split(".")]
    if section == "env" and is_secret_name(key):
        return "set"
    if key == "url" and isinstance(value, str) and "@" in value:
        scheme, _, rest = value.partition("//")
        return f"{scheme}//{HIDDEN}@{rest.rpartition('@')[2]}"
    if key == "extra_args" and isinstance(value, list | tuple):
        return hide_options(value)
    return value


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value that is no table, under its dotted path; list items by their place."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple) and any(isinstance(inner, Mapping) for inner in value):
        for place, inner in enumerate(value):
            yield from _leaves(inner, f"{path}.{place}")
    else:
        yield path, value
