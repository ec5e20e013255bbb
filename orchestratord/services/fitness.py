"""Whether a replica is what its pool is pinned to (ORCH-3050)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from orchestratord.domain.pins import Pins
from orchestratord.ports import Engine, EngineProps
from orchestratord.services.members import Down, Member, ReplicaSpec


async def digest_if_fit(
    pins: Pins, spec: ReplicaSpec, props: EngineProps, digest_of: Callable[[str], Awaitable[str]]
) -> str | None:
    """The digest of its model, as far as it is known; a file is read for it only if it is pinned.

    Raises Down, which names what differs, and OSError.
    """
    digest = spec.model_digest or props.model_digest
    if digest is None and pins.model_digest is not None and spec.process is not None:
        digest = await digest_of(spec.process.model_path)
    why = pins.mismatch(props.engine_version, digest, props.features)
    if why is not None:
        raise Down(why)
    return digest


async def replaced(pins: Pins, member: Member, engine: Engine) -> str | None:
    """Why a replica that did fit no longer does: somebody put another engine in its place. None if it fits."""
    if not pins.any:
        return None
    props = await engine.props()
    return pins.mismatch(props.engine_version, props.model_digest or member.replica.model_digest, props.features)
