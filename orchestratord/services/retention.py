"""Retention of transcripts: by age, then by their bytes in all, oldest first, and none that is referred to."""

from __future__ import annotations

from dataclasses import dataclass

from orchestratord.domain.core import Core
from orchestratord.ports import Artifact, ArtifactStore, Clock, Stored, Telemetry

BATCH = 256


@dataclass(frozen=True, slots=True)
class Keep:
    """How long and how many bytes of them are kept, and how often that is looked after."""

    age_ms: int
    size: int
    every_s: float


class Retention:
    """A sweep at the start, and one every so often.

    It leaves alone what clients have put (`ports.ArtifactStore`), and a transcript whose task or session is still
    there: a `transcript_id` that is shown leads somewhere. Ages are by the wall clock, since they outlive the daemon.
    """

    def __init__(self, store: ArtifactStore, core: Core, clock: Clock, telemetry: Telemetry, keep: Keep) -> None:
        self._store = store
        self._core = core
        self._clock = clock
        self._telemetry = telemetry
        self._keep = keep

    async def serve(self) -> None:
        """Sweep for as long as the daemon runs."""
        while True:
            await self.sweep()
            await self._clock.sleep(self._keep.every_s)

    async def sweep(self) -> None:
        """Drop what is too old, and then the oldest while they are too many bytes."""
        dropped = {"age": 0, "size": 0}
        after: tuple[int, str] | None = None
        failure = ""
        while page := self._due(after):
            for stored, reason in page:
                # Nothing may come between the look at what refers to it and the decision of `drop`.
                if self._why(stored) is None or self._referred(stored.artifact):
                    continue
                try:
                    dropped[reason] += await self._store.drop(stored.artifact.id)
                except OSError as error:  # the next sweep tries again
                    failure = str(error)
            last = page[-1][0].artifact
            after = last.created_ms, last.id
            await self._clock.sleep(0)  # a page of what has to stay is no reason to keep the loop
        self._tell(dropped, failure)

    def _tell(self, dropped: dict[str, int], failure: str) -> None:
        for reason, count in dropped.items():
            if count:
                self._telemetry.count("orchestratord_transcripts_dropped_total", count, reason=reason)
        if failure:
            self._telemetry.event("retention_failed", "a transcript cannot be dropped", error=failure)
        if any(dropped.values()):
            self._telemetry.event(
                "transcripts_dropped",
                f"{sum(dropped.values())} transcripts were past their retention",
                by_age=dropped["age"],
                by_size=dropped["size"],
                left_bytes=self._store.automatic_bytes,
            )

    def _due(self, after: tuple[int, str] | None) -> list[tuple[Stored, str]]:
        """The next of those that should go, oldest first."""
        some = [(stored, self._why(stored)) for stored in self._store.oldest(limit=BATCH, after=after)]
        return [(stored, why) for stored, why in some if why is not None]

    def _why(self, stored: Stored) -> str | None:
        """Why it should go; None if it may stay."""
        if stored.artifact.created_ms <= self._clock.wall_ms() - self._keep.age_ms:
            return "age"
        return "size" if self._store.automatic_bytes > self._keep.size else None

    def _referred(self, artifact: Artifact) -> bool:
        """Whether the task or the session it tells of can still be asked for."""
        for tag in artifact.tags:
            kind, _, named = tag.partition(":")
            if kind == "task" and named in self._core.tasks:
                return True
            if kind == "session" and self._core.sessions.get(named, self._clock.now()) is not None:
                return True
        return False
