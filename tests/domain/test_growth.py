"""What a task costs does not depend on how many others there are."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from orchestratord import domain
from tests.domain.world import World

DOMAIN = domain.__path__[0]


def bytecodes(call: Callable[[], Any]) -> int:
    """How many of the domain's it takes: the same each time, on any machine."""
    count = 0

    def step(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        if not frame.f_code.co_filename.startswith(DOMAIN):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        count += event == "opcode"
        return step

    before = sys.gettrace()
    sys.settrace(step)
    try:
        call()
    finally:
        sys.settrace(before)
    return count


def whole_life(world: World) -> None:
    """Of one more task, beside those that run."""
    world.admit()
    (lease,) = world.dispatch()
    world.output(lease, "a")
    world.finish(lease)


def test_a_life_costs_the_same_beside_a_thousand_that_run() -> None:
    """ORCH-3004: estimates, placement, the choice of a slot and the slot's return walk over no leases."""
    world = World(slots=2_000, capacity=10)
    whole_life(world)  # what is looked up once is looked up
    costs = []
    for running in (10, 1_000):
        while len(world.core.pools["home"].leases) < running:
            world.admit()
            world.dispatch()
        costs.append(bytecodes(lambda: whole_life(world)))
    few, many = costs
    assert many <= few * 1.01
