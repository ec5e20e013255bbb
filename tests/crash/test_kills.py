"""The check of `tests.kills` can fail: a daemon that acknowledges too early is found out."""

from __future__ import annotations

from tests import kills


def test_a_daemon_that_acknowledges_before_its_commit_loses_tasks() -> None:
    """ORCH-3006: the admission is durable before the 202; one that is not is lost with the process."""
    found = kills.run(3, seed=2, fault="ack-before-commit").faults
    assert any("was lost" in fault for fault in found), found
