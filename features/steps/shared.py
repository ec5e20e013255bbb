"""Real models that take turns in memory."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from behave import given, then, when

from features.shared import MODELS, RESIDENT_MS, STARVE_MS, Shared
from features.vocabulary import equal


@given("{agents:d} agents that want two real models, which do not fit together, {tasks:d} times each")
def agents_want_both(context: Any, agents: int, tasks: int) -> None:
    folder = TemporaryDirectory()
    context.add_cleanup(folder.cleanup)
    context.shared = Shared(Path(folder.name), agents=agents, tasks=tasks)
    context.add_cleanup(context.shared.stop)


@when("they have had all their answers")
def they_have_been_served(context: Any) -> None:
    shared = context.shared
    shared.run()
    swaps = int(shared.figure("orchestratord_model_unloads_total"))
    longest = max(served.wait_ms for served in shared.served)
    sys.__stdout__.write(
        f"\nshared memory: {len(shared.served)} tasks, {swaps} swaps, longest load {shared.longest_load_ms} ms, "
        f"longest wait {longest} ms\n"
    )


@then("every task of theirs ended well, on the model it asked for")
def all_ended_well(context: Any) -> None:
    served = context.shared.served
    equal(Counter(each.end for each in served), Counter(end=len(served)), "how they ended")
    texts = [{each.text for each in served if each.model == model} for model in MODELS]
    assert not texts[0] & texts[1], "both models wrote the same"


@then("the two were never in memory together")
def never_together(context: Any) -> None:
    equal(context.shared.together, 0, "times two engines were seen at once")


@then("nobody waited longer than the documented bound")
def within_the_bound(context: Any) -> None:
    shared = context.shared
    run_ms = max(served.run_ms for served in shared.served)
    behind_ms = run_ms * 3  # the others' tasks for the same model that came first
    bound = len(MODELS) * (max(STARVE_MS, RESIDENT_MS) + run_ms + shared.longest_load_ms) + behind_ms
    longest = max(served.wait_ms for served in shared.served)
    assert longest <= bound, f"{longest} ms, and the bound is {bound:.0f} ms"


@then("the swaps are counted and shown")
def swaps_are_shown(context: Any) -> None:
    shared = context.shared
    shown = sum(pool["swaps"] for pool in shared.look("/v1/pools")["items"])
    assert shown >= 2, f"{shown} swaps: they did not take turns"
    equal(shared.figure('orchestratord_model_unloads_total{pool_id="'), shown, "the swaps of the metrics")
