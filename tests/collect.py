"""Collecting transcripts while clients store the same ones, and others that name them (E13).

    python -m tests.collect [--count 10000] [--seed 1]

Each round has one transcript, a collector that drops whatever may be dropped, and clients that store it, or a child of
it, in an order the seed draws. What a client was told is stored has to be there afterwards, and so has the parent that
was there when its child was stored; also after a restart. Ends with 1 if anything was lost.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

from orchestratord.infra.storage.filesystem import FileArtifacts
from orchestratord.infra.storage.memory import MemoryArtifacts
from orchestratord.ports import Artifact, ArtifactStore
from orchestratord.wire.canonical import id_of
from tests.turns import turn_of_loop

AT_ONCE = 8


@dataclass(slots=True)
class Tally:
    rounds: int = 0
    dropped: int = 0
    refused: int = 0
    stored: int = 0
    children: int = 0
    lost: list[str] = field(default_factory=list)


def document(text: str, created_ms: int, parent: str | None = None) -> Artifact:
    whole = Artifact("", "trace", {"text": text}, ("sse",), parent, {}, created_ms)
    return replace(whole, id=id_of(whole))


class Round:
    """One transcript, and what has become of it."""

    def __init__(self, store: ArtifactStore, number: int, draw: Random, tally: Tally) -> None:
        self._store = store
        self._draw = draw
        self._tally = tally
        self.one = document(f"transcript {number}", number)
        self.child = document(f"child {number}", number, self.one.id)
        self.must: set[str] = set()

    async def play(self) -> None:
        await self._store.put(self.one, automatic=True)
        actors = [self._collect, self._collect, self._again, self._client, self._parent]
        self._draw.shuffle(actors)
        await asyncio.gather(*(self._later(actor) for actor in actors[: self._draw.randint(2, 5)]))

    async def _later(self, actor: object) -> None:
        for _ in range(self._draw.randrange(6)):
            await turn_of_loop()
        await actor()  # type: ignore[operator]

    async def _collect(self) -> None:
        """As retention does: only what is offered."""
        for _ in range(3):
            offered = self._store.oldest(limit=1, after=(self.one.created_ms - 1, "f" * 64))
            if offered and offered[0].artifact.id == self.one.id:
                if await self._store.drop(self.one.id):
                    self._tally.dropped += 1
                else:
                    self._tally.refused += 1
            await turn_of_loop()

    async def _again(self) -> None:
        """The daemon itself, which archives a transcript twice when it dies in between."""
        await self._store.put(self.one, automatic=True)

    async def _client(self) -> None:
        await self._store.put(self.one)
        self.must.add(self.one.id)
        self._tally.stored += 1

    async def _parent(self) -> None:
        await self._store.put(self.child)
        self.must.add(self.child.id)
        self._tally.children += 1
        if await self._store.get(self.one.id) is not None:
            self.must.add(self.one.id)

    async def judge(self, store: ArtifactStore, when: str) -> None:
        for one in (self.one, self.child):
            found = await store.get(one.id)
            if one.id in self.must and found is None:
                self._tally.lost.append(f"{one.content['text']} is gone {when}")
            if found is not None and found.opened().content != one.content:
                self._tally.lost.append(f"{one.content['text']} is another {when}")


async def play(count: int, seed: int, root: Path | None) -> Tally:
    tally, draw = Tally(), Random(seed)
    store: ArtifactStore = MemoryArtifacts() if root is None else FileArtifacts(root, id_of)
    if isinstance(store, FileArtifacts):
        await store.open()
    rounds = [Round(store, number, draw, tally) for number in range(count)]
    for start in range(0, count, AT_ONCE):
        some = rounds[start : start + AT_ONCE]
        await asyncio.gather(*(one.play() for one in some))
        for one in some:
            await one.judge(store, "afterwards")
    if root is not None:
        store = FileArtifacts(root, id_of)
        await store.open()
        for one in rounds:
            await one.judge(store, "after a restart")
    tally.rounds = count
    return tally


def run(count: int, seed: int, *, files: bool) -> Tally:
    if not files:
        return asyncio.run(play(count, seed, None))
    with tempfile.TemporaryDirectory(prefix="orchestratord-") as folder:
        return asyncio.run(play(count, seed, Path(folder)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    lost = 0
    for files in (False, True):
        tally = run(arguments.count, arguments.seed, files=files)
        lost += len(tally.lost)
        sys.stdout.write(
            f"{'files' if files else 'memory'}, seed {arguments.seed}: {tally.rounds} rounds, {tally.dropped} drops, "
            f"{tally.refused} refused, {tally.stored} stored by clients, {tally.children} children, "
            f"lost {len(tally.lost)}\n"
        )
        for line in tally.lost[:10]:
            sys.stdout.write(f"  {line}\n")
    return int(lost > 0)


if __name__ == "__main__":
    sys.exit(main())
