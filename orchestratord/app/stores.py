"""Where things are kept: facts, artifacts, models."""

from __future__ import annotations

from collections.abc import Callable

from orchestratord import mapping
from orchestratord.config import ConfigError, Settings
from orchestratord.domain.facts import TranscriptSource
from orchestratord.infra.fetch.cache import Cache
from orchestratord.infra.fetch.files import LocalFiles
from orchestratord.infra.fetch.models import Fetches, Models
from orchestratord.infra.fetch.policy import FetchPolicy
from orchestratord.infra.journal.memory import MemoryJournal
from orchestratord.infra.journal.sqlite import SqliteJournal
from orchestratord.infra.storage.filesystem import FileArtifacts
from orchestratord.infra.storage.memory import MemoryArtifacts
from orchestratord.ports import Artifact, ArtifactStore, Clock, Journal, ModelUnavailable
from orchestratord.wire import canonical


def make_journal(settings: Settings, archive: Callable[[TranscriptSource], Artifact]) -> Journal:
    """`archive` makes the transcript of a task that has ended."""
    if settings.journal.kind == "memory":
        return MemoryJournal(archive)
    path = settings.data_path / "journal.db"
    return SqliteJournal(path, archive, durability=settings.journal.durability)


def make_artifacts(settings: Settings) -> ArtifactStore:
    """Not open yet, if it is one of files."""
    if settings.artifacts.kind == "memory":
        return MemoryArtifacts()
    flush = settings.journal.durability == "power"  # transcripts promise what the journal promises
    return FileArtifacts(settings.data_path / "artifacts", canonical.id_of, flush=flush)


def make_models(settings: Settings, clock: Clock) -> Models:
    """Raises ConfigError where the policy forbids the only model of a pool."""
    policy = mapping.fetch_policy(settings.models.fetch)
    named = [r.process.model_path for p in settings.pools for r in p.replicas if r.process is not None]
    local = LocalFiles(settings.models.roots, filter(None, named))
    cache = Cache(settings.data_path / "models")
    models = Models(local, policy, cache, _remote(policy, cache, clock))
    for pool in settings.pools:
        if any(r.process is not None and r.process.model_path is None for r in pool.replicas):
            try:
                models.check(pool.model)
            except ModelUnavailable as error:
                raise ConfigError(f"pool {pool.id!r}: {error}") from None
    return models


def _remote(policy: FetchPolicy, cache: Cache, clock: Clock) -> Fetches | None:
    if not policy.schemes:
        return None
    from orchestratord.infra.fetch.remote import Remote

    return Remote(policy, cache, clock)
