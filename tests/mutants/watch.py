"""A pytest plugin that notes what happened to each test in a file of its own (`MUTANTS_NOTES`), and stops at a kill.

Only a test that fails while it runs is a kill; when the fault broke an import or a fixture, nothing was judged.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

NOTES = Path(os.environ["MUTANTS_NOTES"])
RED = frozenset(json.loads(os.environ.get("MUTANTS_RED", "[]")))  # tests that fail without any fault
STOPS = "MUTANTS_RED" in os.environ
MEMORY = 8 << 30  # bytes; a loop without end must not take the machine down


class Notes:
    """seconds of each test that ran, and of those that did not pass whether they failed or were broken."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.failed: list[str] = []
        self.broken: list[str] = []
        self.session: Any = None

    def write(self) -> None:
        notes = {"seconds": self.seconds, "failed": self.failed, "broken": self.broken}
        NOTES.write_text(json.dumps(notes), "utf-8")


notes = Notes()


def pytest_configure(config: pytest.Config) -> None:
    """The same examples each time, and a failure is not made smaller: it only has to be one."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
    quick = hypothesis.settings(hypothesis.settings.get_profile("ci"), phases=phases, print_blob=False)
    hypothesis.settings.register_profile("mutants", quick)
    hypothesis.settings.load_profile("mutants")


def pytest_sessionstart(session: pytest.Session) -> None:
    notes.session = session


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report: Any = yield
    imports = call.excinfo is not None and call.excinfo.errisinstance((ImportError, SyntaxError))
    report.kind = "broken" if imports or call.when != "call" else "failed"
    return report


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    notes.seconds[report.nodeid] = notes.seconds.get(report.nodeid, 0.0) + report.duration
    if report.failed and report.nodeid not in RED:
        getattr(notes, report.kind).append(report.nodeid)
        if STOPS and report.kind == "failed":
            notes.session.shouldstop = "killed"


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.failed:
        notes.broken.append(report.nodeid)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """What cannot be imported any more is no fault that behaviour would show."""
    if hasattr(session.config, "workerinput"):
        return
    try:
        importlib.import_module("orchestratord.app")
    except Exception as error:
        notes.failed.clear()
        notes.broken.insert(0, f"orchestratord.app does not import: {error!r}")
    notes.write()
