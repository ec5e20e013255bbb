"""Nothing here is the services' own; see `support`."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # The app's clock is nudged while its loop is closing: sometimes too late, which is harmless here.
    for item in items:
        item.add_marker(pytest.mark.filterwarnings("ignore:coroutine 'ManualClock.run' was never awaited"))
