"""What has to hold (`must`) and what is wanted (`reach`), each judged by the median of the ratios within rounds."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

US = "orchestratord"
Results = dict[str, dict[str, list[float]]]  # {figure: {peer: one value per round; nan where it did not take part}}


@dataclass(frozen=True)
class Goal:
    """`figure` of the daemon, divided by the same of `against` (None: as it is), is at most `must` or `reach`.

    A bound that is the name of a peer is that peer's figure.
    """

    figure: str
    unit: str
    against: str | None = None
    must: float | None = None
    reach: float | str | None = None


GOALS = (
    Goal("B", "us/token", "vllm-router", must=0.8),
    Goal("C", "us/token", "vllm-router", must=1.0),
    Goal("C", "us/token", "nginx", reach=1.0),
    Goal("Clight", "us/token", "vllm-router", must=0.9),
    Goal("D", "us/request", "litellm", must=1 / 50),
    Goal("D", "us/request", "vllm-router", reach=1.5),
    Goal("F", "us/admission", "stub", must=3.0, reach=2.0),
    Goal("E stream", "KiB", must=20.0, reach=16.0),
    Goal("E idle", "MiB", must=80.0, reach=64.0),
    Goal("TTFT added p50", "ms", must=1.5, reach="vllm-router"),
    Goal("token delay added p50", "ms", must=0.15, reach="vllm-router"),
)


@dataclass(frozen=True)
class Verdict:
    goal: Goal
    bound: str  # must or reach
    limit: float
    value: float | None  # None: a peer it needs is absent

    @property
    def holds(self) -> bool | None:
        return None if self.value is None else self.value <= self.limit

    @property
    def words(self) -> str:
        return {None: "not measured", True: "holds", False: "does not hold"}[self.holds]


def known(values: list[float]) -> list[float]:
    return [value for value in values if value == value]  # nan is not itself


def middle(values: list[float]) -> float | None:
    return median(found) if (found := known(values)) else None


def ratio(results: Results, figure: str, against: str | None) -> float | None:
    """The median of the ratios within rounds; of the values themselves without a peer."""
    costs = results.get(figure, {})
    ours = costs.get(US, [])
    if against is None:
        return middle(ours)
    return middle([mine / theirs for mine, theirs in zip(ours, costs.get(against, []), strict=False)])


def judge(results: Results) -> list[Verdict]:
    verdicts = []
    for goal in GOALS:
        value = ratio(results, goal.figure, goal.against)
        for bound, limit in (("must", goal.must), ("reach", goal.reach)):
            if isinstance(limit, str):
                theirs = middle(results.get(goal.figure, {}).get(limit, []))
                verdicts.append(Verdict(goal, bound, theirs or 0.0, None if theirs is None else value))
            elif limit is not None:
                verdicts.append(Verdict(goal, bound, limit, value))
    return verdicts
