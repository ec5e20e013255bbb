"""The world of one scenario: a daemon of its own (or somebody's deployment), one verified door, and what was said."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import requests
from prometheus_client.parser import text_string_to_metric_families

from features.engines import Speaking
from features.plan import Plan
from features.readers import Reader
from features.sockets import Narrow
from features.wishes import KINDS, PROMPT, SEED, Call, Wanted
from orchestratord.testing.checker import CancelAck, RunRecord, TaskRecord, check
from orchestratord.testing.live import LiveApp, mock_pool
from orchestratord.testing.session import Record, VerifyingSession
from orchestratord.testing.verifier import Verifier

HERE, AWAY = (2, 5), (10, 180)  # connect and read timeouts: of a daemon in this process, of a deployment
PATIENCE_S = 20.0  # of real time, for what threads and sockets do
TERMINAL = ("ended", "canceled", "failed")


@dataclass(frozen=True, slots=True)
class Deployment:
    """A daemon that runs somewhere, for `@portable` scenarios."""

    base_url: str
    token: str | None
    model_ref: str
    engine: str


@dataclass(slots=True)
class Sent:
    """One task as it was asked for, and the last answer to that."""

    body: dict[str, Any]
    answer: requests.Response
    seals: list[int] = field(default_factory=list)
    watched: bool = True  # whether the checker may judge it: not across a restart of the daemon

    @property
    def id(self) -> str:
        return str(self.body["task_id"])


class World:
    """Built empty; the daemon starts when a step first needs it, with the settings the steps before have asked for."""

    def __init__(self, deployment: Deployment | None, verifier: Verifier) -> None:
        self.deployment = deployment
        self.record = Record()
        self.spoken: set[tuple[str, int]] = set()  # errors whose code a step has looked at
        self.answer: requests.Response | None = None
        self.answers: dict[str, requests.Response] = {}  # of every operation, by its name
        self.tasks: dict[str, Sent] = {}
        self.last = ""  # the task `it` stands for
        self.readers: dict[str, Reader] = {}
        self.refusal = ""  # of a daemon that would not start
        self.ids: dict[tuple[str, str], str] = {}  # (kind, name in the scenario) -> the real id
        self.plan = Plan()
        self._verifier = verifier
        self._audit = Record()
        self._app: LiveApp | None = None
        self._http: VerifyingSession | None = None

    # -- the daemon ---------------------------------------------------------------------------------------------
    @property
    def app(self) -> LiveApp:
        assert self.deployment is None, "this step needs a daemon of its own: the scenario is not @portable"
        if self._app is None:
            self._app = self._launch()
        return self._app

    def _launch(self) -> LiveApp:
        self._http = None
        return self.plan.build().start()

    def restart(self) -> None:
        """End the daemon as its supervisor would, and start it again over the same disk."""
        assert self.plan.directory is not None, "a daemon that keeps nothing cannot be restarted"
        self.settle_accounts()
        self.app.stop()
        for sent in self.tasks.values():
            sent.watched = False
        self.record.ledger.clear()
        self._audit.ledger.clear()
        self._app = self._launch()

    @property
    def http(self) -> VerifyingSession:
        """The one door."""
        if self._http is None:
            self._http = self.door(self.record)
        return self._http

    def door(self, record: Record) -> VerifyingSession:
        """Another one, for somebody else."""
        if self.deployment is not None:
            target, timeout = self.deployment, AWAY
            return VerifyingSession(target.base_url, target.token, self._verifier, timeout, record)
        session = VerifyingSession(self.app.url, self.plan.token, self._verifier, HERE, record)
        self.plan.undo.callback(session.close)
        return session

    def settle(self, seconds: float = 0) -> None:
        """Let everything come to rest; of a deployment nothing is known but its answers."""
        if self.deployment is None:
            self.app.advance(seconds)

    def until(self, true: Callable[[], bool], what: str) -> None:
        """Wait for what the daemon notices in its own time, such as a connection that closed."""
        pause, give_up = threading.Event(), time.monotonic() + PATIENCE_S
        while time.monotonic() < give_up:
            self.settle()
            if true():
                return
            pause.wait(0.001)  # threads of the daemon need the interpreter too
        raise AssertionError(f"it never came to be that {what}")

    # -- engines ------------------------------------------------------------------------------------------------
    def engines(self, pool_id: str) -> list[Speaking]:
        found = [engine for (pool, _), engine in sorted(self.app.daemon.mocks.items()) if pool == pool_id]
        assert found, f"there is no pool {pool_id!r}"
        return found  # type: ignore[return-value] # `_launch` put them there

    def drive(self, pool_id: str, act: Callable[[Speaking], object]) -> None:
        """Do something to every engine of a pool, and let it take effect."""
        for engine in self.engines(pool_id):
            self.app.call(lambda engine=engine: act(engine))
        self.settle()

    def calls(self, pool_id: str) -> int:
        """How often tasks reached the engines of a pool."""
        return sum(engine.calls for engine in self.engines(pool_id))

    def occupy(self, pool_id: str) -> None:
        """Fill every slot of a pool with a task that does not move until the engine is let go."""
        slots = sum(replica["mock"]["slots"] for replica in self.plan_of(pool_id)["replicas"])
        self.drive(pool_id, lambda engine: engine.hold())
        for number in range(1, slots + 1):
            self.submit(f"busy {number}", "", Wanted({"model_ref": pool_id, "on_disconnect": "continue"}))
        busy = self.look(f"/v1/pools/{pool_id}/health")["slots_busy"]
        assert busy == slots, f"{busy} of {slots} slots of {pool_id} are busy"

    def plan_of(self, pool_id: str) -> dict[str, Any]:
        return self.plan.pools.get(pool_id) or mock_pool(pool_id)

    # -- talking to it ------------------------------------------------------------------------------------------
    def send(self, method: str, path: str, **options: Any) -> requests.Response:
        """Ask, and remember the answer as `it`."""
        self.answer = self.http.request(method, path, **options)
        self.settle()
        return self.answer

    def send_all(self, calls: list[Call], **options: Any) -> None:
        """Ask many operations; the answers stand under the operations' names."""
        for call in calls:
            sent = {**({"json": call.json} if call.json is not None else {}), **options}
            self.answers[call.operation.operation_id] = self.http.request(call.method, call.path, **sent)
        self.settle()

    def look(self, path: str) -> Any:
        """What the daemon shows under a path; `it` stays what it was."""
        answer = self.http.get(path)
        assert answer.status_code == 200, f"GET {path} gave {answer.status_code}: {answer.text}"
        return answer.json()

    def id(self, kind: str, name: str) -> str:
        """The id a name of the scenario stands for."""
        return self.ids.setdefault((kind, name), str(uuid4()))

    def submit(self, name: str, kind: str, wanted: Wanted, **options: Any) -> Sent:
        """Send a task; from now on `it` is this one."""
        body = self._body(name, kind, wanted)
        self.tasks[name] = Sent(body, self.send("POST", "/v1/tasks", json=body, **options))
        self.last = name
        return self.tasks[name]

    def _body(self, name: str, kind: str, wanted: Wanted) -> dict[str, Any]:
        if self.deployment is not None:
            model, engine = self.deployment.model_ref, self.deployment.engine
        else:
            model = next(iter(self.plan.pools), "home")
            engine = self.plan_of(str(wanted.fields.get("model_ref", model)))["engine"]
        body = {
            "task_id": self.id("task", name),
            "session_id": self.id("session", wanted.session or f"of task {name}"),
            "workload": "completion",
            "model_ref": model,
            "engine": engine,
            "ctx": 256,
            "priority": "interactive",
            "max_tokens": 20,
            "deadline_ms": 3_600_000,
            "seed": SEED,
            **({} if kind == "embedding" else {"prompt": PROMPT}),
            **KINDS[kind],
            **wanted.fields,
        }
        for field_name in wanted.without:
            body.pop(field_name, None)
        return body

    def resend(self, name: str, wanted: Wanted) -> None:
        """The request of a task once more, perhaps changed."""
        sent = self.tasks[name]
        sent.answer = self.send("POST", "/v1/tasks", json={**sent.body, **wanted.fields})

    def task(self, name: str) -> Sent:
        assert name in self.tasks, f"no task {name!r} was sent; there are {sorted(self.tasks)}"
        return self.tasks[name]

    def status(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.look(f"/v1/tasks/{self.task(name).id}")
        return found

    def cancel(self, name: str) -> None:
        sent = self.task(name)
        answer = self.send("POST", f"/v1/tasks/{sent.id}/cancel")
        if answer.status_code == 204:
            sent.seals.append(int(answer.headers["X-Last-Event-Id"]))

    def follow(self, reader: str, task: str, **options: Any) -> Reader:
        """Open a stream. An answer other than 200 is `it`."""
        stream = self.door(self.record).events(self.task(task).id, **options)
        self.answer = stream.response
        resumed = options.get("last_event_id", options.get("after"))
        after = int(resumed) if stream.status == 200 and resumed is not None else 0
        self.readers[reader] = Reader(reader, task, stream, after)
        self.settle()
        return self.readers[reader]

    def follow_slowly(self, reader: str, task: str) -> None:
        """Open a stream that the client takes next to nothing of after its first event, as over a line that hangs."""
        door = self.door(self.record)
        door.mount("http://", Narrow())
        stream = door.events(self.task(task).id, cut=True)
        slow = self.readers[reader] = Reader(reader, task, stream, cut=True)
        slow.until(lambda r: bool(r.seen))
        self.settle()

    def reader(self, name: str) -> Reader:
        assert name in self.readers, f"no reader {name!r}; there are {sorted(self.readers)}"
        return self.readers[name]

    def story(self, task: str) -> Reader:
        """Everything a task has to tell, read from the first event to the last by a reader of its own."""
        reader = self.readers.get(f"story of {task}") or self.follow(f"story of {task}", task)
        reader.rest()
        return reader

    def transcript(self, task: str) -> dict[str, Any]:
        """The artifact a finished task left."""
        found: dict[str, Any] = self.look(f"/v1/artifacts/{self.status(task)['transcript_id']}")
        return found

    def metric(self, name: str, labels: dict[str, str]) -> float | None:
        """The sum of a series over the samples with these labels; None when there is none."""
        found = [
            sample.value
            for family in text_string_to_metric_families(self.http.get("/metrics").text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        ]
        return sum(found) if found else None

    # -- afterwards ---------------------------------------------------------------------------------------------
    def settle_accounts(self) -> None:
        """Leave every stream, let the independent checker judge what was seen, and balance the books."""
        for reader in self.readers.values():
            reader.leave()
        if self._app is None and self.deployment is None:
            return
        findings = check(RunRecord(list(self._judged())))
        assert not findings, "\n".join(map(str, findings))
        if self._app is not None:
            unbalanced = self._app.ledger.balance(self.record.ledger + self._audit.ledger)
            assert not unbalanced, "\n".join(unbalanced)

    def _judged(self) -> Iterator[TaskRecord]:
        """What the checker may know of each task that is over and still known."""
        if self.plan.buggy or not any(sent.watched for sent in self.tasks.values()):
            return
        door = self.door(self._audit)
        for name, sent in self.tasks.items():
            if sent.answer.status_code != 202 or not sent.watched:
                continue
            answer = door.get(f"/v1/tasks/{sent.id}")
            final = answer.json() if answer.status_code == 200 else {}
            if final.get("state") in TERMINAL:
                readers = [r.record for r in self.readers.values() if r.task == name and r.stream.status == 200]
                acks = [CancelAck(seal, index) for index, seal in enumerate(sent.seals)]
                yield TaskRecord(sent.id, 202, readers, acks, final, sent.body["session_id"], self._text(door, final))

    def _text(self, door: VerifyingSession, final: dict[str, Any]) -> str | None:
        if self.plan.store is not None or "transcript_id" not in final:
            return None
        answer = door.get(f"/v1/artifacts/{final['transcript_id']}")
        return answer.json()["content"]["text"] if answer.status_code == 200 else None

    def traces(self) -> dict[str, bytes]:
        """What was seen and said, by file name: for somebody who looks for the cause of a failure."""
        answers = [sent.answer for sent in self.tasks.values()] + [self.answer, *self.answers.values()]
        told = [f"{a.request.method} {a.url} {a.status_code}\n{a.text}\n" for a in answers if a is not None]
        found = {"answers.txt": "\n".join(told).encode()}
        found |= {f"stream-{name}.txt": reader.stream.raw for name, reader in self.readers.items()}
        found |= dict(self._tasks_as_they_are())
        if self._app is not None:
            found["daemon.log"] = self._app.log.getvalue().encode()
            served = [f"{e.status} {e.method} {e.path} {e.correlation_id}" for e in self._app.ledger.entries]
            found["served.txt"] = "\n".join(served).encode()
        return found

    def _tasks_as_they_are(self) -> Iterator[tuple[str, bytes]]:
        """Of each task that was taken its status, and its transcript when it is over; of a dead daemon nothing."""
        with suppress(requests.RequestException, AssertionError):
            door = self.door(Record())
            for name, sent in self.tasks.items():
                status = door.get(f"/v1/tasks/{sent.id}")
                if status.status_code != 200:
                    continue
                yield f"task-{name}.json", status.content
                if "transcript_id" in status.json():
                    yield f"transcript-{name}.json", door.get(f"/v1/artifacts/{status.json()['transcript_id']}").content

    def leave(self) -> None:
        """Whatever happened, let go of all that other scenarios could stumble over. Idempotent."""
        for reader in self.readers.values():
            reader.stream.response.close()
        self.plan.undo.close()

    def close(self) -> None:
        """End the daemon. Takes a while, and nobody has to wait for it."""
        app, self._app = self._app, None
        try:
            if app is not None:
                app.stop()
        finally:
            if self.plan.directory is not None:
                shutil.rmtree(self.plan.directory)
