"""The operations of the contracts: unpack, one service call, return. The page where the API can be read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from orchestratord.services.admission import Admission
from orchestratord.services.artifacts import Artifacts
from orchestratord.services.catalog import CatalogModels
from orchestratord.services.operations import Operations
from orchestratord.services.pools import Pools
from orchestratord.services.reload import Reloads
from orchestratord.services.sessions import Sessions
from orchestratord.services.streams import Streams
from orchestratord.services.tasks import Tasks


@dataclass(frozen=True, slots=True)
class Services:
    """What handlers may call."""

    admission: Admission
    tasks: Tasks
    streams: Streams
    sessions: Sessions
    pools: Pools
    operations: Operations
    reloads: Reloads
    artifacts: Artifacts
    catalog: CatalogModels
    metrics: Callable[[], tuple[bytes, bytes]]  # (content type, body)
    readiness: Callable[[], list[str]]  # reasons against; empty when ready
