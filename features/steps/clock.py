"""Time. It stands still unless a scenario moves it."""

from __future__ import annotations

from typing import Any

from behave import step


@step("{duration:Duration} pass")
@step("{duration:Duration} passes")
def time_passes(context: Any, duration: float) -> None:
    context.world.settle(duration)
