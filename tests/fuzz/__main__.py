"""Fuzz both contracts against a live daemon through the verified door: `python -m tests.fuzz --count 50000 --seed 1`.

schemathesis draws the requests (examples, coverage of the schema's corners, random ones, chains over links) and has its
own checks; every answer also passes our verifier, and what was served and what was judged must be the same list. The
run fails on any fault, and when it has not been deep enough to mean anything.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import schemathesis
from schemathesis.config import SchemathesisConfig
from schemathesis.core.failures import Failure
from schemathesis.engine import events, from_schema
from schemathesis.hooks import unregister_all
from schemathesis.transport.requests import RequestsTransport

from orchestratord import contract
from orchestratord.testing.live import LiveApp, mock_pool, mock_settings
from orchestratord.testing.verifier import Verifier
from tests.fuzz.door import Books, Door
from tests.fuzz.live import OPERATIONS, Exchange

TOKEN = "fuzz-token"  # so that checks of authentication have something to find
ADMITTED_SHARE = 0.25
STREAMS = 100
DEEP = ["cancelTask", "deleteSession", "drainPool", "reloadPool", "getArtifact"]  # good ones are rare
EXPECTED = ["2xx", "3xx", "4xx", "501", "503"]  # of 501 and 503 the door judges the code
ACCEPTED = ["2xx", "3xx", "401", "403", "404", "409", "413", "429", "501", "503"]  # 413: no schema counts bytes
REJECTED = ["400", "401", "403", "404", "405", "409", "413", "415", "429", "501", "503"]


@schemathesis.check
def refusals_name_a_rule(_: Any, response: Any, case: Any) -> None:
    """Stands in for positive_data_acceptance where the contract has rules a schema cannot say."""
    operation = OPERATIONS.get((case.method.upper(), case.operation.path))
    positive = case.meta is not None and case.meta.generation.mode.is_positive
    if operation is None or not explains(operation) or not positive or response.status_code < 400:
        return
    if str(response.status_code) in ACCEPTED:
        return
    rule = response.json().get("details", {}).get("rule") if response.status_code == 400 else None
    if rule not in operation.rules:
        raise Failure(
            operation=case.operation.label,
            title="a valid request was refused without a rule",
            message=f"{response.status_code}, rule {rule!r} is not one of {operation.rules}",
        )


def explains(operation: contract.Operation) -> bool:
    """Whether a request that fits its schema may be a 400."""
    return bool(operation.rules)


def waits(operation: contract.Operation) -> bool:
    """Whether it needs something that only an operation still to come can make."""
    return any(operation.path.startswith(other.path) for other in contract.operations() if other.until is not None)


def configuration(url: str, seed: int, examples: int, number: int) -> SchemathesisConfig:
    """The first round visits examples and corners, which come out the same every time; all rounds draw at random.

    Most of createTask's corners are wrong on purpose, so its random cases are many and every second round valid.
    """
    streams = {"mode": "positive", "max-examples": examples * 20}
    tasks = {"mode": "positive" if number % 2 == 0 else "all", "max-examples": examples * 120}
    ruled = [operation.operation_id for operation in contract.operations() if explains(operation)]
    return SchemathesisConfig.from_dict(
        {
            "seed": seed,
            "base-url": url,
            "headers": {"Authorization": f"Bearer {TOKEN}"},
            "workers": 1,
            "request-timeout": 10,
            "generation": {"max-examples": examples, "no-shrink": True, "database": "none"},
            "suppress-health-check": ["all"],
            "checks": {
                "not_a_server_error": {"expected-statuses": EXPECTED},
                "positive_data_acceptance": {"expected-statuses": ACCEPTED},
                "negative_data_rejection": {"expected-statuses": REJECTED},
            },
            "phases": {"examples": {"enabled": number == 0}, "coverage": {"enabled": number == 0}},
            "operations": [
                {"include-operation-id": "createTask", "phases": {"fuzzing": {"generation": tasks}}},
                {"include-operation-id": "streamTask", "phases": {"fuzzing": {"generation": streams}}},
                {"include-operation-id": DEEP, "phases": {"fuzzing": {"generation": {"max-examples": examples * 10}}}},
                {"include-operation-id": ruled, "checks": {"positive_data_acceptance": {"enabled": False}}},
            ],
        }
    )


def settings(folder: Path) -> Any:
    pools = [
        mock_pool("home", slots=4, replicas=2, aliases=["hello"]),
        mock_pool("deep", slots=2, capacity=8, engine="vllm"),
        mock_pool("wide", slots=8, engine="tgi"),
    ]
    return mock_settings(pools=pools, token=TOKEN, sessions={"turns_max": 1000}, models={"roots": [str(folder)]})


class Operator(threading.Thread):
    """Brings drained pools back, so that a run never ends with nothing being served."""

    def __init__(self, door: Door) -> None:
        super().__init__(name="operator", daemon=True)
        self._door = door
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.wait(0.2):
            pools = self._door.get("/v1/pools").json()["items"]
            for pool in pools:
                if pool["draining"]:
                    self._door.post(f"/v1/pools/{pool['id']}/resume")
            self._door.books.live.pools = pools

    @property
    def ledger(self) -> list[tuple[str, int]]:
        return self._door.ledger

    def finish(self) -> None:
        self._over.set()
        self.join(20)


class Fuzz:
    """One run: rounds over both contracts until enough requests were sent."""

    def __init__(self, app: LiveApp, seed: int, models: Path) -> None:
        self.books = Books()
        self.books.live.files = [f"file:{path}" for path in models.iterdir()]
        self.failures: Counter[str] = Counter()
        self.samples: dict[str, str] = {}
        self._app = app
        self._seed = seed
        verifier = Verifier()
        self._door = Door(app.url, self.books, verifier, None)
        self._operator = Operator(Door(app.url, self.books, verifier, TOKEN))
        self._exchange = Exchange(self.books.live, seed)

    def run(self, count: int, examples: int) -> None:
        self._operator.start()
        send = RequestsTransport.send
        door, exchange = self._door, self._exchange

        def through_the_door(transport: Any, case: Any, *, session: Any = None, **options: Any) -> Any:
            """Whatever session the caller made, only its credentials count."""
            door.headers = {"Accept-Encoding": "identity", **({} if session is None else session.headers)}
            return send(transport, case, session=door, **options)

        def before_call(_: Any, case: Any, __: dict[str, Any]) -> None:
            if case.meta is not None:
                exchange.apply(case)

        schemathesis.hook("before_call")(before_call)
        try:
            with patch.object(RequestsTransport, "send", through_the_door):
                self._rounds(count, examples)
        finally:
            self._operator.finish()
            unregister_all()

    def _rounds(self, count: int, examples: int) -> None:
        begun, number = time.monotonic(), 0
        while self.books.requests < count:
            for name in contract.CONTRACTS:
                self._round(name, number, examples)
            number += 1
            seconds = time.monotonic() - begun
            print(f"round {number}: {self.books.requests} requests, {seconds:.0f} s, {len(self.books.faults)} faults")

    def _round(self, name: str, number: int, examples: int) -> None:
        config = configuration(self._app.url, self._seed + number, examples, number)
        schema = schemathesis.openapi.from_dict(contract.bundle(name), config=config)
        for event in from_schema(schema).execute():
            if isinstance(event, events.NonFatalError):
                self._fail(f"{event.label}: {event.info.title}", f"{event.info.message} {event.value!r}")
            elif isinstance(event, events.ScenarioFinished):
                for nodes in event.recorder.checks.values():
                    for node in nodes:
                        if node.failure_info is not None:
                            failure = node.failure_info.failure
                            self._fail(
                                f"{event.label}: {node.name}: {failure.title}",
                                f"{failure.message}\n    {node.failure_info.code_sample}",
                            )

    def _fail(self, title: str, text: str) -> None:
        self.failures[title] += 1
        self.samples.setdefault(title, text)

    # -- judgement ----------------------------------------------------------------------------------------------
    def shortfalls(self, scale: float) -> Iterator[str]:
        """Why the run was not deep enough."""
        asked = sum(n for (name, _), n in self.books.answers.items() if name == "createTask")
        admitted = self.books.answers["createTask", 202]
        if admitted < ADMITTED_SHARE * asked:
            yield f"{admitted} of {asked} createTask cases were admitted, {ADMITTED_SHARE:.0%} must be"
        if self.books.finished_streams < STREAMS * scale:
            yield f"{self.books.finished_streams} streams reached a terminal event, {STREAMS * scale:.0f} must"
        for operation in contract.operations():
            for status in operation.responses:
                missing = not self.books.answers[operation.operation_id, int(status)]
                if status.startswith("2") and missing and not waits(operation):
                    yield f"{operation.operation_id} never answered {status}"

    def unbalanced(self) -> list[str]:
        """Answers that came past the door, but for the tool's own probe before each round."""
        verified = [*self._door.ledger, *self._operator.ledger]
        return [line for line in self._app.ledger.balance(verified) if "/schemathesis-probe" not in line]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1500, help="requests at least")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--examples", type=int, default=3, help="random cases of each operation and round")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as models, LiveApp(settings(Path(models)), manual=False) as app:
        for name in ("next.gguf", "other.gguf"):
            (Path(models) / name).write_bytes(b"GGUF")
        fuzz = Fuzz(app, arguments.seed, Path(models))
        fuzz.run(arguments.count, arguments.examples)
        problems = [f"{title} ({n} times)\n{fuzz.samples[title]}" for title, n in fuzz.failures.items()]
        problems += fuzz.books.faults + fuzz.unbalanced()
        problems += list(fuzz.shortfalls(min(1.0, arguments.count / 10_000)))
    for (name, status), n in sorted(fuzz.books.answers.items()):
        print(f"{name:<24} {status} {n:>6}")
    print("\n".join(problems))
    print(
        f"{fuzz.books.requests} requests, {fuzz.books.finished_streams} streams to their end, {len(problems)} problems"
    )
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
