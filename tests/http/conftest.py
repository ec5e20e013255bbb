"""Daemons for the tests of this folder. What a session asked must be all the daemon served: both ledgers agree."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from orchestratord.testing.live import LiveApp
from orchestratord.testing.session import VerifyingSession


@pytest.fixture
def app() -> Iterator[LiveApp]:
    """A fresh daemon with one mock pool of two slots, everything in memory, on virtual time."""
    with LiveApp() as running:
        yield running


@pytest.fixture
def session(app: LiveApp) -> Iterator[VerifyingSession]:
    """The one client of `app`. Tests that talk to it in other ways make their own with `app.session()`."""
    with app.session() as opened:
        yield opened
        assert app.ledger.balance(opened.ledger) == []


@pytest.fixture(scope="module")
def shared_app() -> Iterator[LiveApp]:
    """One daemon for all tests of a module that leave no state behind."""
    with LiveApp() as running:
        yield running


@pytest.fixture(scope="module")
def shared_session(shared_app: LiveApp) -> Iterator[VerifyingSession]:
    with shared_app.session() as opened:
        yield opened
