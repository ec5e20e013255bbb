"""The ports: what services ask of the outside world. The docstring of each method is its specification.

Every implementation of a port, the test doubles included, passes the same suite in `tests/ports`.
"""

from orchestratord.ports.artifacts import Artifact, ArtifactCorrupt, ArtifactStore, ArtifactTooLarge, Encoded, Stored
from orchestratord.ports.clock import Clock, Timer
from orchestratord.ports.engines import Chunk, Deliver, Engine, EngineError, EngineProps, Job, JobEnd, KvGauge
from orchestratord.ports.journal import CatalogStore, Journal, JournalUnavailable, Ticket
from orchestratord.ports.machine import GpuProbe, HostMemory
from orchestratord.ports.models import Measured, ModelCache, ModelFiles, ModelProofs, ModelUnavailable, Signed, Used
from orchestratord.ports.processes import ProcessSpec, ReplicaHost, ReplicaProcess, Startable
from orchestratord.ports.telemetry import OVER, Telemetry

__all__ = [
    "OVER",
    "Artifact",
    "ArtifactCorrupt",
    "ArtifactStore",
    "ArtifactTooLarge",
    "CatalogStore",
    "Chunk",
    "Clock",
    "Deliver",
    "Encoded",
    "Engine",
    "EngineError",
    "EngineProps",
    "GpuProbe",
    "HostMemory",
    "Job",
    "JobEnd",
    "Journal",
    "JournalUnavailable",
    "KvGauge",
    "Measured",
    "ModelCache",
    "ModelFiles",
    "ModelProofs",
    "ModelUnavailable",
    "ProcessSpec",
    "ReplicaHost",
    "ReplicaProcess",
    "Signed",
    "Startable",
    "Stored",
    "Telemetry",
    "Ticket",
    "Timer",
    "Used",
]
