"""What a feature suite must not have: `python -m features.lint` prints every fault and ends with 1 if there is one."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from behave.matchers import MatchWithError
from behave.parser import parse_file
from behave.runner_util import load_step_modules
from behave.step_registry import registry

HERE = Path(__file__).resolve().parent
REQUIREMENT = re.compile(r"(?:ORCH|OC-[A-Z]+|HME|AUTH|SSE|ADAPT|HTU|OD)-[0-9]+")
STEPS_AT_MOST = 7


def scenarios() -> Iterator[Any]:
    """Every scenario of every feature, outlines row by row."""
    for path in sorted(HERE.rglob("*.feature")):
        feature = parse_file(str(path))
        assert feature is not None, f"{path} has no feature"
        yield from feature.walk_scenarios()


def step_faults(found: list[Any]) -> Iterator[str]:
    """Steps nothing defines, steps two definitions claim, definitions nothing uses."""
    used = set()
    for scenario in found:
        for step in scenario.all_steps:
            matches = []
            for definition in registry.steps[step.step_type] + registry.steps["step"]:
                match = definition.match(step.name)
                if match:
                    used.add(definition)
                    matches.append(definition)
                if isinstance(match, MatchWithError):
                    yield f"{step.location}: {step.name!r}: {match.stored_error}"
            if not matches:
                yield f"{step.location}: no definition for: {step.keyword} {step.name}"
            elif len(matches) > 1:
                patterns = " and ".join(repr(definition.pattern) for definition in matches)
                yield f"{step.location}: {step.name!r} is claimed by {patterns}"
    yield from _unused({id(definition) for definition in used})


def _unused(used: set[int]) -> Iterator[str]:
    for definitions in registry.steps.values():
        for definition in definitions:
            if id(definition) not in used:
                yield f"{definition.location}: no scenario uses {definition.pattern!r}"


def scenario_faults(found: list[Any]) -> Iterator[str]:
    """Scenarios that prove nothing, or nothing in particular, or too much at once."""
    titles: dict[str, Any] = {}
    for scenario in found:
        place = f"{scenario.location}: {scenario.name!r}"
        steps = list(scenario.all_steps)
        if not any(REQUIREMENT.fullmatch(tag) for tag in scenario.effective_tags):
            yield f"{place} has no requirement"
        if not any(step.step_type == "then" for step in steps):
            yield f"{place} asserts nothing"
        if sum(step.keyword.strip() == "When" for step in steps) > 1:
            yield f"{place} has more than one When"
        if len(scenario.steps) > STEPS_AT_MOST:
            yield f"{place} has {len(scenario.steps)} steps, {STEPS_AT_MOST} at most"
        if scenario.name in titles:
            yield f"{place} has the title of {titles[scenario.name]}"
        titles[scenario.name] = scenario.location


def feature_faults() -> Iterator[str]:
    """Features without their three lines of why, and scenarios outside any rule."""
    for path in sorted(HERE.rglob("*.feature")):
        feature = parse_file(str(path))
        if not feature.description:
            yield f"{path}: says nothing of why it exists"
        for scenario in feature.scenarios:
            yield f"{scenario.location}: {scenario.name!r} is under no rule"


def sleeps() -> Iterator[str]:
    """Calls of anything named sleep."""
    for path in sorted(HERE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            called = getattr(node, "func", None)
            if isinstance(node, ast.Call) and "sleep" in (getattr(called, "attr", ""), getattr(called, "id", "")):
                yield f"{path}:{node.lineno}: sleeps"


def main() -> int:
    load_step_modules([str(HERE / "steps")])
    found = list(scenarios())
    faults = [*step_faults(found), *scenario_faults(found), *feature_faults(), *sleeps()]
    for fault in faults:
        sys.stderr.write(f"{fault}\n")
    portable = sum("portable" in scenario.effective_tags for scenario in found)
    sys.stdout.write(f"{len(found)} scenarios, {portable} portable, {len(faults)} faults\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
