"""The benchmark's own judgement: what it calls lost, late, and good enough."""

from __future__ import annotations

import asyncio
import json
from math import nan
from typing import Any

import pytest

from benchmarks import goals, load, peers, report, scenarios
from benchmarks.goals import US
from benchmarks.peers import Peer
from benchmarks.processes import helper

ABOUT: dict[str, Any] = {"commit": "c", "machine": "m", "kernel": "k", "python": "p", "libraries": {}, "rounds": 3}
ABOUT["durability"] = "process"


def _verdicts(results: goals.Results) -> dict[tuple[str, str | None, str], goals.Verdict]:
    return {(v.goal.figure, v.goal.against, v.bound): v for v in goals.judge(results)}


def test_a_goal_is_judged_by_the_median_of_the_ratios_within_rounds() -> None:
    results = {"C": {US: [10.0, 40.0, 30.0], "vllm-router": [20.0, 20.0, 31.0], "nginx": [20.0, nan, nan]}}
    found = _verdicts(results)
    assert found["C", "vllm-router", "must"].value == pytest.approx(30 / 31)
    assert found["C", "vllm-router", "must"].holds
    assert found["C", "nginx", "reach"].value == 0.5, "rounds without the peer do not count"
    assert found["B", "vllm-router", "must"].words == "not measured"


def test_a_peer_s_own_figure_can_be_the_bound() -> None:
    found = _verdicts({"TTFT added p50": {US: [1.2], "vllm-router": [1.0]}})
    assert found["TTFT added p50", None, "must"].holds is True
    reach = found["TTFT added p50", None, "reach"]
    assert (reach.limit, reach.holds) == (1.0, False)


def test_the_report_says_who_was_absent_and_what_does_not_hold() -> None:
    results = {"C": {US: [30.0], "vllm-router": [20.0]}}
    text = report.markdown(ABOUT, results, {"start-up": {"ms": 1.0}}, ["litellm"])
    assert "Absent: litellm" in text
    assert "| C / vllm-router | 1.50 (1.50..1.50) | must | <= 1.00 | does not hold |" in text
    parsed = json.loads(report.as_json(ABOUT, {"C": {US: [nan, 2.0]}}, {}, []))
    assert parsed["results"] == {"C": {US: [None, 2.0]}}


@pytest.mark.parametrize("body", [b"", b"t0 ", b"t0 t2 ", b"t0 t1 t1 ", b"t1 t0 "])
def test_lost_doubled_and_disordered_tokens_are_noticed(body: bytes) -> None:
    frames = b"".join(b'data: {"content":"%b "}\n\n' % text for text in body.split())
    with pytest.raises(load.Wrong):
        load.check_frames(frames, 2)


def test_a_token_arrives_with_the_read_that_completed_it() -> None:
    async def scenario() -> tuple[int, list[float]]:
        answer = load.Answer()
        answer.body += b"t0@1000000 t1@3000000 t2@4000000 "
        answer.marks = [(5, 1_500_000), (15, 2_000_000), (len(answer.body), 9_000_000)]
        return scenarios.arrivals(answer)

    assert asyncio.run(scenario()) == (2_000_000, [1.0, 6.0, 5.0])


@pytest.mark.parametrize("ask", [peers.ask_llama, peers.ask_chat])
def test_the_fake_engine_brings_every_token_in_both_dialects(ask: peers.Ask) -> None:
    """Held back until all streams are there, then paced; measured on the relay that only copies."""

    async def scenario() -> tuple[dict[str, float], scenarios.Delays]:
        async with (
            helper("benchmarks.engine", "8") as (_, (engine,)),
            helper("benchmarks.floor", "copy", str(engine)) as (copy, (port,)),
        ):
            peer = Peer("copy", copy.pid, port, engine, ask)
            return await scenarios.gated(peer, 3, 5, 1), await scenarios.light(peer, 2, 5, 1)

    found, delays = asyncio.run(scenario())
    assert 0 < found["path"] <= found["whole"]
    assert (len(delays.ttft), len(delays.token)) == (2, 10)
    assert min(delays.token) >= 0
