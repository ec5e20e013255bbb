"""Engines and stores that misbehave in ways the shipped ones cannot: behind the same ports."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from orchestratord.domain.facts import TranscriptSource
from orchestratord.infra.engines.mock import MockEngine, MockScript
from orchestratord.infra.storage.memory import MemoryArtifacts
from orchestratord.ports import Artifact, ArtifactCorrupt, Chunk, Clock, Deliver, Job, JobEnd
from orchestratord.services.runs import ATTEMPTS
from orchestratord.wire.transcript import transcript


class Speaking(MockEngine):
    """Says word for word what it is told to, token by token.

    Probes are answered by a healthy twin, so that whatever a scenario does to the engine happens to its tasks alone,
    and only they are counted.
    """

    says: tuple[str, ...] = ()

    def __init__(self, *, clock: Clock, **options: Any) -> None:
        super().__init__(clock=clock, **options)
        self._twin = MockEngine(clock=clock)

    def probed(self, change: Callable[[MockEngine], object]) -> None:
        """Change what answers probes."""
        change(self._twin)

    async def run(self, job: Job, deliver: Deliver) -> None:
        if job.prompt == "ping":
            await self._twin.run(job, deliver)
        elif self.says:
            await self._speak(deliver)
        else:
            await super().run(job, deliver)

    async def _speak(self, deliver: Deliver) -> None:
        self.calls += 1
        self.busy_slots += 1
        try:
            for count, text in enumerate(self.says, 1):
                deliver(Chunk([text], tokens_out=count))
            deliver(Chunk(end=JobEnd("stop", 1, len(self.says))))
        finally:
            self.busy_slots -= 1


class Flaky(MemoryArtifacts):
    """A store in memory that can refuse to be written or read, and whose documents can rot."""

    def __init__(self) -> None:
        super().__init__()
        self.fault: Exception | None = None
        self.rotten: set[str] = set()

    async def put(self, artifact: Artifact, *, automatic: bool = False) -> Artifact:
        self._fail()
        return await super().put(artifact, automatic=automatic)

    async def get(self, artifact_id: str) -> Artifact | None:
        self._fail()
        if artifact_id in self.rotten:
            raise ArtifactCorrupt(artifact_id)
        return await super().get(artifact_id)

    async def list(self, *, limit: int, after: Any, tag: str | None) -> list[Artifact]:
        self._fail()
        return await super().list(limit=limit, after=after, tag=tag)

    @property
    def ids(self) -> set[str]:
        return set(self._whole)

    def _fail(self) -> None:
        if self.fault is not None:
            raise self.fault


class Disk:
    """The fault hook of a journal: while it is full, every write fails."""

    def __init__(self) -> None:
        self.full = False

    def __call__(self, point: str) -> None:
        if self.full and point == "before_commit":
            raise OSError(28, "No space left on device")


def archive(source: TranscriptSource) -> Artifact:
    """How a daemon makes transcripts, for a journal that exists before its daemon."""
    return transcript(source)


def fault(words: str, after: int) -> MockScript:
    """What an engine is told to do wrong. Raises KeyError for words nobody knows.

    A fault before the first token is tried again elsewhere: those go on until the task has had all its attempts.
    """
    every = ATTEMPTS if not after else 1
    known: dict[str, Callable[[], MockScript]] = {
        "breaks off": lambda: MockScript(every, die_after=after),
        "breaks off once": lambda: MockScript(die_after=after),
        "sends garbage": lambda: MockScript(every, garbage_after=after),
        "reports an error": lambda: MockScript(every, error_after=after),
        "falls silent": lambda: MockScript(hang_after=after),
        "refuses the task": lambda: MockScript(refuse="this is not for me"),
        "is full": lambda: MockScript(every, full=True),
        "ignores the abort": lambda: MockScript(ignore_abort=True),
        "never stops": lambda: MockScript(endless=True),
    }
    return known[words]()
