"""The model catalog: announced by the contract, brought by the control-plane work. Until then it holds nothing."""

from __future__ import annotations

from typing import Any

from orchestratord.domain.errors import NotFound, NotImplementedYet
from orchestratord.handlers import Services
from orchestratord.wire.responses import Reply

_LATER = "The catalog comes with the control plane. Until then, models are named in the configuration."


async def create_catalog_model(app: Services, body: dict[str, Any]) -> Reply:
    raise NotImplementedYet(_LATER)


async def list_catalog_models(app: Services, state: str | None, limit: int | None, cursor: str | None) -> Reply:
    raise NotImplementedYet(_LATER)


async def get_catalog_model(app: Services, id: str) -> Reply:  # noqa: A002 - the contract's name
    raise _unknown(id)


async def delete_catalog_model(app: Services, id: str) -> Reply:  # noqa: A002
    raise _unknown(id)


async def verify_catalog_model(app: Services, id: str) -> Reply:  # noqa: A002
    raise _unknown(id)


async def set_catalog_model_state(app: Services, id: str, body: dict[str, Any]) -> Reply:  # noqa: A002
    raise _unknown(id)


def _unknown(model_id: str) -> NotFound:
    return NotFound(f"There is no catalog model {model_id!r}.")
