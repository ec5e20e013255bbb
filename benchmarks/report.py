"""The result of a full run as Markdown and as JSON."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.daemon import DURABILITY
from benchmarks.goals import US, Results, Verdict, judge, known, middle
from benchmarks.processes import ROOT

FIGURES = {
    "B": "B: 50 x 2,000 tokens unpaced, us/token",
    "C": "C: 200 x 200 tokens, 20 ms apart, us/token",
    "Clight": "Clight: 20 x 150 tokens, 20 ms apart, us/token",
    "D": "D: one-token request, us",
    "F": "F: admission alone, us",
    "F growth": "F: last third of the queue's 3,000 / first",
    "E idle": "E: idle, MiB",
    "E stream": "E: each of 1,000 open streams, KiB",
    "TTFT added p50": "TTFT added, p50, ms",
    "TTFT added p99": "TTFT added, p99, ms",
    "token delay added p50": "token delay added, p50, ms",
    "token delay added p99": "token delay added, p99, ms",
    "B path": "B without admissions and ends, us/token",
    "C path": "C without admissions and ends, us/token",
    "C reads": "C: tokens a read of the client finds",
}
LIBRARIES = ("uvicorn", "uvloop", "httptools", "msgspec", "orjson", "connexion", "jsonschema-rs")


def about(rounds: int) -> dict[str, Any]:
    """Where and of what a run was made."""
    cpus = {
        line.split(":")[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    }
    return {
        "commit": _git("rev-parse", "--short", "HEAD") + ("+" if _git("status", "--porcelain", "-uno") else ""),
        "date": _git("log", "-1", "--format=%cs"),
        "machine": f"{os.cpu_count()} x {', '.join(sorted(cpus)) or platform.machine()}",
        "kernel": platform.release(),
        "python": platform.python_version(),
        "libraries": {name: version(name) for name in LIBRARIES},
        "durability": DURABILITY,
        "rounds": rounds,
    }


def _git(*arguments: str) -> str:
    found = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return found.stdout.strip()


def markdown(about: dict[str, Any], results: Results, life: dict[str, dict[str, float]], absent: list[str]) -> str:
    libraries = ", ".join(f"{name} {number}" for name, number in about["libraries"].items())
    peers = [US, *sorted({peer for costs in results.values() for peer in costs} - {US})]
    lines = [
        f"Commit {about['commit']}; {about['machine']}, Linux {about['kernel']}, CPython {about['python']}; "
        f"{libraries}.",
        f"{about['rounds']} rounds, peers in turn, medians. Journal durability `{about['durability']}`; "
        "authentication, contract checks, transcripts, metrics, heartbeats and deadlines on.",
    ]
    lines += [f"Absent: {name} (`python -m benchmarks.prepare {name}`)." for name in absent]
    lines += ["", "| | " + " | ".join(peers) + " |", "|---|" + "---:|" * len(peers)]
    for figure, words in FIGURES.items():
        if costs := results.get(figure):
            lines.append(f"| {words} | " + " | ".join(number(middle(costs.get(peer, []))) for peer in peers) + " |")
    lines += ["", "| goal | measured (rounds) | | bound | |", "|---|---:|---|---:|---|"]
    lines += [_goal(results, verdict) for verdict in judge(results) if verdict.goal.figure in results]
    lines += ["", "| besides | |", "|---|---|"] if life else []
    for name, found in life.items():
        lines.append(f"| {name} | " + ", ".join(f"{what} {number(value)}" for what, value in found.items()) + " |")
    return "\n".join(lines) + "\n"


def as_json(about: dict[str, Any], results: Results, life: dict[str, dict[str, float]], absent: list[str]) -> str:
    """Everything measured, round by round; null where a peer did not take part."""
    rounds = {
        figure: {peer: [value if value == value else None for value in values] for peer, values in costs.items()}
        for figure, costs in results.items()
    }
    judged = [
        {
            "figure": verdict.goal.figure,
            "against": verdict.goal.against,
            "bound": verdict.bound,
            "limit": verdict.limit,
            "value": verdict.value,
            "holds": verdict.holds,
        }
        for verdict in judge(results)
    ]
    whole = {"about": about, "absent": absent, "results": rounds, "goals": judged, "besides": life}
    return json.dumps(whole, indent=2) + "\n"


def _goal(results: Results, verdict: Verdict) -> str:
    goal = verdict.goal
    what = f"{goal.figure} / {goal.against}" if goal.against else f"{goal.figure}, {goal.unit}"
    theirs = f"{goal.reach}'s " if verdict.bound == "reach" and isinstance(goal.reach, str) else ""
    measured = f"{number(verdict.value)} ({spread(results, goal.figure, goal.against)})"
    return f"| {what} | {measured} | {verdict.bound} | <= {theirs}{number(verdict.limit)} | {verdict.words} |"


def spread(results: Results, figure: str, against: str | None) -> str:
    costs = results.get(figure, {})
    ours, theirs = costs.get(US, []), costs.get(against or "", [])
    values = [a / b for a, b in zip(ours, theirs, strict=False)] if against else ours
    found = known(values)
    return f"{number(min(found))}..{number(max(found))}" if found else "-"


def number(value: float | None) -> str:
    """Three digits or so."""
    if value is None:
        return "-"
    size = abs(value)
    return f"{value:,.{0 if size >= 100 else 1 if size >= 10 else 2 if size >= 0.1 else 3}f}"
