"""The check of `tests.kills` can fail: a daemon that acknowledges too early is found out."""

from __future__ import annotations

import re
import subprocess
import sys

from tests.http.daemon import ROOT


def test_a_daemon_that_acknowledges_before_its_commit_loses_tasks() -> None:
    """ORCH-3006: the admission is durable before the 202; one that is not is lost with the process."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.kills", "--count", "3", "--seed", "2"]
    done = subprocess.run(
        [*command, "--break", "ack-before-commit"], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    found = re.search(r"lost (\d+)", done.stdout)
    assert found is not None, done.stderr
    assert (done.returncode, int(found[1]) > 0) == (1, True), done.stdout
