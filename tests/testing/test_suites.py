"""The judges of the suites can fail: what must be a finding is one, what must not be is none."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from orchestratord.testing.checker import TaskRecord
from tests import chaos, determinism
from tests.determinism import PASSES, Outcome
from tests.lying_llama import LIES
from tests.races import Http


# -- determinism -----------------------------------------------------------------------------------------------
def perfect() -> dict[str, Outcome]:
    streams = {("short", 1): "a", ("short", 2): "b"}
    return {
        each.name: Outcome(dict(streams), {"exact" if each.promised else "best_effort"}, {("v", "d", "p")})
        for each in PASSES
    }


def test_equal_streams_are_no_finding() -> None:
    assert list(determinism.judge(perfect())) == []


@pytest.mark.parametrize("each", PASSES, ids=lambda each: each.name)
def test_a_stream_that_differs_is_a_finding_where_that_was_promised(each: determinism.Pass) -> None:
    """ORCH-3045: and only there; the table counts it in any case."""
    outcomes = perfect()
    outcomes[each.name].streams["short", 2] = "c"
    found = [fault for fault in determinism.judge(outcomes) if fault.startswith(f"{each.name}:")]
    reference = each.name == each.against  # others differ from it then
    assert bool(found) is (each.promised and each.alike and not reference)
    assert bool(list(determinism.judge(outcomes))) is (each.promised and each.alike)


def test_more_findings_of_the_determinism_suite() -> None:
    """A promise that was not made, one that should not have been, seeds without effect, origins that differ."""
    for spoil in (
        lambda outcomes: outcomes["again"].classes.add("best_effort"),
        lambda outcomes: outcomes["again"].origins.add(("other", "d", "p")),
        lambda outcomes: outcomes["again"].faults.append("short/1 is failed"),
        lambda outcomes: [outcome.streams.update({("short", 2): "a"}) for outcome in outcomes.values()],
    ):
        outcomes = perfect()
        spoil(outcomes)
        assert list(determinism.judge(outcomes))


# -- chaos -----------------------------------------------------------------------------------------------------
def verdict(final: dict[str, Any], *, pool: str = "liars", kind: str = "none", transcript: str = " 1 2") -> list[str]:
    body = {"max_tokens": 2, "model_ref": pool}
    suite = chaos.Chaos(Http("http://127.0.0.1:1"))
    suite.record.tasks.append(TaskRecord("t", final=final, transcript=transcript))
    return [finding.kind for finding in chaos._honesty(suite, {"t": kind}, {"t": body})]


ENDED = {"state": "ended", "tokens_out": 2, "finish_reason": "length"}


def test_honest_ends_are_no_finding() -> None:
    assert verdict(ENDED) == []
    assert verdict({**ENDED, "tokens_out": 1, "finish_reason": "stop"}, pool="real", transcript=" x") == []
    assert verdict({"state": "canceled"}, kind="lie: garbage") == []
    for code in chaos.HONEST:
        assert verdict({"state": "failed", "error": {"code": code}}) == []


def test_dishonest_ends_are_findings() -> None:
    """A text that is not whole, one made of a lie, and a failure that blames nobody it may."""
    assert verdict(ENDED, transcript=" 1") == ["text_mismatch"]
    assert verdict({**ENDED, "tokens_out": 1}, pool="real") == ["text_mismatch"]
    for lie in chaos.FATAL:
        assert "text_mismatch" in verdict(ENDED, kind=f"lie: {lie}")
    for code in ("INTERNAL", "INVALID_PARAMS"):
        assert verdict({"state": "failed", "error": {"code": code}}) == ["status_disagrees"]


def test_plans_follow_from_the_seed_and_know_every_lie() -> None:
    plans = [chaos.make_plan(3, number) for number in range(300)]
    assert plans == [chaos.make_plan(3, number) for number in range(300)]
    assert plans != [chaos.make_plan(4, number) for number in range(300)]
    told = Counter(lie for plan in plans for lie in LIES if f" lie {lie};" in plan.body["prompt"])
    assert told.keys() == set(LIES)
    assert set(LIES) >= chaos.FATAL
