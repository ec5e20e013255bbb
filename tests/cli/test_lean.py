"""What a daemon imports: in a process of its own, since this one has long imported everything."""

from __future__ import annotations

import argparse
import gc
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from orchestratord import cli
from orchestratord.cli import lean

SERVED = """
import gc, re, sys
from pathlib import Path

import uvicorn

from orchestratord.cli import lean, main

uvicorn.Server.run = lambda server, sockets: (server.config.load(), print({}), *(s.close() for s in sockets))
sys.exit(main(["serve", "--port", "0"]))
"""
HEAVY = [
    "aiohttp",
    "cryptography",
    "cyclonedx",
    "httpx",
    "jinja2",
    "obstore",
    "openapi_core",
    "opentelemetry",
    "requests",
    "spdx_tools",
    "urllib3",
]
HEAVY += ["starlette.templating", "starlette.testclient"]


def run(code: str, folder: Path) -> str:
    """What `code` prints, in a process that says nothing else; `folder` is its data directory."""
    environ = {**os.environ, "ORCHD_DATA_DIR": str(folder), "ORCHD_CONFIG": str(folder / "empty.yaml")}
    (folder / "empty.yaml").write_text("{}")
    done = subprocess.run(
        [sys.executable, "-W", "default", "-c", code], env=environ, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


def test_a_daemon_imports_nothing_it_does_not_use(tmp_path: Path) -> None:
    assert run(SERVED.format(f"[name for name in {HEAVY} if name in sys.modules]"), tmp_path) == "[]"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_a_daemon_that_is_about_to_serve_takes_less_than_80_mib(tmp_path: Path) -> None:
    """60 to 64 MiB where this was written."""
    code = SERVED.format("re.search('VmRSS:[^0-9]*([0-9]+)', Path('/proc/self/status').read_text())[1]")
    assert int(run(code, tmp_path)) < 80 * 1024


@pytest.mark.skipif("glibc" not in platform.libc_ver(), reason="other libraries keep other things")
def test_what_is_large_goes_back_to_the_system_when_it_is_freed(tmp_path: Path) -> None:
    """Sixteen blocks of a mebibyte, of which the last is still in use; glibc has seen larger ones freed before."""
    resident = "int(re.search('VmRSS:[^0-9]*([0-9]+)', Path('/proc/self/status').read_text())[1])"
    code = SERVED.replace("sys.exit(", "came = ").replace('"0"]))', '"0"])')
    code += f"""
before = {resident}
bytes(16 << 20)
blocks = [b"x" * (1 << 20) for _ in range(16)]
del blocks[:15]
print({resident} - before)
"""
    assert int(run(code.format(""), tmp_path)) < 6 * 1024


def test_the_collector_never_looks_at_what_a_start_has_made(tmp_path: Path) -> None:
    seen = "gc.get_freeze_count(), gc.get_threshold()[0], gc.isenabled()"
    kept, young, enabled = run(SERVED.format(seen), tmp_path).split()
    assert int(kept) > 10_000
    assert int(young) >= lean.COLLECT_EVERY[0]
    assert enabled == "True"


def test_what_was_left_out_is_imported_when_it_is_called(tmp_path: Path) -> None:
    code = """
from orchestratord.cli import lean

lean.import_connexion()
import connexion.apps.abstract
import connexion.spec

print(connexion.spec.jinja2.Template("{{ 6 * 7 }}").render())
"""
    assert run(code, tmp_path) == "42"


def test_later_imports_get_the_module_itself(tmp_path: Path) -> None:
    code = """
from orchestratord.cli import lean

lean.import_connexion()
import jinja2

print(jinja2.__file__ is not None, isinstance(jinja2.Template, type))
"""
    assert run(code, tmp_path) == "True True"


def test_a_start_that_fails_leaves_the_collector_as_it_was() -> None:
    frozen, before = gc.get_freeze_count(), gc.get_threshold()
    with pytest.raises(AssertionError, match="off"), lean.making():
        assert gc.isenabled(), "off"
    assert (gc.isenabled(), gc.get_freeze_count(), gc.get_threshold()) == (True, frozen, before)


@pytest.mark.parametrize("asked", sorted({name for names in cli.GROUPS.values() for name in names}))
def test_each_command_is_found_where_the_table_says(asked: str) -> None:
    """Alone it is parsed as it is among all of them, and the table names every command there is."""
    every, alone = choices(cli.build_parser()), choices(cli.build_parser(asked))
    assert set(every) == {name for names in cli.GROUPS.values() for name in names}
    assert set(alone) == set(next(names for names in cli.GROUPS.values() if asked in names))
    assert alone[asked].format_help() == every[asked].format_help()


def choices(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    (commands,) = [action for action in parser._actions if action.dest == "command"]
    assert isinstance(commands.choices, dict)
    return commands.choices


def test_a_command_imports_no_other(tmp_path: Path) -> None:
    code = """
import sys

from orchestratord.cli import main

try:
    main(["status", "--url", "http://127.0.0.1:1", "--nonsense"])
except SystemExit:
    print([name for name in ("msgspec", "orchestratord.config", "sqlite3", "yaml") if name in sys.modules])
"""
    assert run(code.replace("import sys\n", "import sys\nsys.stderr = sys.stdout\n", 1), tmp_path).endswith("[]")
