"""`docs/first-steps.sh` is true: it runs here as it stands, from the wheel to the last error and its exit code."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path

import pytest

from orchestratord.cli import EXIT_CODES
from orchestratord.testing.tiny_gguf import tiny_llama
from tests.http.daemon import ROOT

SCRIPT = ROOT / "docs" / "first-steps.sh"


def test_the_first_steps_are_true(tmp_path: Path) -> None:
    """OD-26: with the packages that are installed here and, where there is llama.cpp, a real model."""
    environ = {**os.environ, "TMPDIR": str(tmp_path), "PYTHON": sys.executable}
    environ["PACKAGES"] = sysconfig.get_path("purelib")
    if find_spec("xllamacpp") or shutil.which("llama-server"):
        tiny_llama(tmp_path / "tiny.gguf")
        environ["MODEL"] = str(tmp_path / "tiny.gguf")
    done = subprocess.run([SCRIPT], env=environ, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert done.stdout.endswith("== That was everything.\n")
    assert {path.name for path in tmp_path.iterdir()} <= {"tiny.gguf"}, "it left something behind"


@pytest.mark.parametrize("code", sorted(set(re.findall(r"(?m)^\s*try (\d+) ", SCRIPT.read_text()))))
def test_its_exit_codes_are_documented(code: str) -> None:
    """By `--help` and by the page of the command line."""
    assert re.search(rf"(?m)(?:^|   )\s*{code} \w", EXIT_CODES)
    assert f"\n| {code} |" in (ROOT / "docs" / "cli.md").read_text()
