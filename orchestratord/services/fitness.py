"""Whether a replica is what its pool is pinned to (ORCH-3050)."""

from __future__ import annotations

from orchestratord.domain.pins import Pins
from orchestratord.ports import Engine, EngineProps
from orchestratord.services.members import Down, Member


def known_digest(pins: Pins, member: Member, props: EngineProps) -> str | None:
    """The digest of its model, as far as it is known. Raises Down, which names what differs from the pins."""
    digest = member.digest or member.spec.model_digest or props.model_digest
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
