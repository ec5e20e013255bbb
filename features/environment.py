"""What happens around scenarios: a world for each, its books balanced after it, the coverage gate after all."""

from __future__ import annotations

import json
import shutil
import sys
import warnings
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import requests

from features.world import Deployment, World
from orchestratord.testing.gate import problems
from orchestratord.testing.session import Record, VerifyingSession
from orchestratord.testing.verifier import Verifier

HERE = Path(__file__).resolve().parent
EVIDENCE = HERE.parent / "build" / "evidence.jsonl"
FAILED = HERE.parent / "build" / "failed"
PORTABLE_FLOOR = 40


class Suite:
    """What outlives a scenario."""

    def __init__(self, config: Any) -> None:
        self.verifier = Verifier()
        self.seen = Record()
        self.evidence: list[dict[str, Any]] = []
        self.ran = self.skipped = 0
        self.deployment = _deployment(config.userdata)
        filters = [config.name, config.include_re, config.exclude_re]
        filters.append([tag for tag in config.tags or () if tag.lstrip("@") != "portable" or self.deployment is None])
        self.complete = not any(filters) and [Path(path).resolve() for path in config.paths] == [HERE]
        self._endings: list[Future[None]] = []
        self._background = ThreadPoolExecutor(max_workers=4)

    def take(self, record: Record, spoken: set[tuple[str, int]]) -> None:
        """An error is shown by a step that compares its code, any other answer by being there."""
        self.seen.coverage |= {(name, status) for name, status in record.coverage if status < 400 or not named(name)}
        self.seen.coverage |= record.coverage & spoken
        self.seen.seen_headers |= record.seen_headers
        self.seen.seen_events |= record.seen_events

    def retire(self, world: World) -> None:
        """Ending a daemon is mostly waiting: that goes on beside the next scenarios."""
        world.leave()
        self._endings.append(self._background.submit(world.close))

    def finish(self) -> None:
        """Wait for every daemon to be down. Raises what ending one raised."""
        for ending in self._endings:
            ending.result(60)


def _deployment(userdata: Any) -> Deployment | None:
    """Where `-D base_url=... -D token=... -D model_ref=...` point to."""
    if "base_url" not in userdata:
        return None
    url, token = userdata["base_url"], userdata.get("token")
    pools = VerifyingSession(url, token).get("/v1/pools").json()["items"]
    ref = userdata.get("model_ref") or next(pool["model_ref"] for pool in pools if pool["ready"])
    engine = next((pool["engine"] for pool in pools if ref in (pool["model_ref"], pool["id"])), "llamacpp")
    return Deployment(url, token, ref, userdata.get("engine", engine))


def before_all(context: Any) -> None:
    warnings.simplefilter("ignore", DeprecationWarning)
    shutil.rmtree(FAILED, ignore_errors=True)  # of the run before
    try:
        context.suite = Suite(context.config)
    except requests.ConnectionError as error:
        raise RuntimeError(f"no daemon answers at {context.config.userdata['base_url']}: {error}") from error


def before_scenario(context: Any, scenario: Any) -> None:
    suite: Suite = context.suite
    away = suite.deployment is not None
    if "wip-bug" in scenario.effective_tags or (away and "portable" not in scenario.effective_tags):
        suite.skipped += "portable" in scenario.effective_tags
        scenario.skip()
        return
    context.world = World(suite.deployment, suite.verifier)


def after_scenario(context: Any, scenario: Any) -> None:
    world: World | None = getattr(context, "world", None)
    if world is None:
        return
    suite: Suite = context.suite
    passed = scenario.status.name == "passed"
    try:
        if passed:
            world.settle_accounts()
    except AssertionError:
        passed = False
        raise
    finally:
        if not passed and scenario.status.name != "skipped":
            keep(world, scenario)
        suite.retire(world)
    if scenario.status.name == "skipped":
        suite.skipped += "portable" in scenario.effective_tags
        return
    suite.ran += "portable" in scenario.effective_tags
    if passed:
        suite.take(world.record, world.spoken)
        place = f"{Path(scenario.filename).resolve().relative_to(HERE.parent)}:{scenario.line}"
        suite.evidence.append({"tags": sorted(scenario.effective_tags), "scenario": scenario.name, "location": place})


def keep(world: World, scenario: Any) -> None:
    """What helps to understand a failure: `build/failed/<place>/` has the daemon's log, the answers and the streams."""
    place = Path(scenario.filename).resolve().relative_to(HERE).with_suffix("")
    folder = FAILED / f"{'-'.join(place.parts)}-{scenario.line}"
    folder.mkdir(parents=True, exist_ok=True)
    failure = "".join(step.error_message or "" for step in scenario.all_steps)
    (folder / "failure.txt").write_text(f"{scenario.name}\n{scenario.error_message or ''}{failure}\n", "utf-8")
    for name, text in world.traces().items():
        (folder / name).write_bytes(text)


def after_all(context: Any) -> None:
    suite: Suite | None = getattr(context, "suite", None)
    if suite is None:
        return
    suite.finish()
    if suite.deployment is not None:
        sys.__stdout__.write(f"\nportable: {suite.ran} ran, {suite.skipped} skipped\n")
        assert suite.ran >= PORTABLE_FLOOR or not suite.complete, (
            f"only {suite.ran} portable scenarios ran, at least {PORTABLE_FLOOR} must"
        )
        return
    EVIDENCE.parent.mkdir(exist_ok=True)
    entries = [{"complete": suite.complete}, *suite.evidence]
    EVIDENCE.write_text("".join(json.dumps(entry) + "\n" for entry in entries), "utf-8")
    if suite.complete and not context.failed:
        found = problems(suite.seen, allowed=HERE / "uncovered.txt")
        assert not found, "coverage gate (features/uncovered.txt):\n" + "\n".join(found)


def named(operation: str) -> bool:
    """Whether an error of it has a code to compare: readiness has a shape of its own."""
    return operation != "getReadiness"


after_all.capture = False  # type: ignore[attr-defined] # what it says is for whoever started the run
