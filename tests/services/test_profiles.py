"""A sampler profile on an engine that does not have all its knobs."""

from __future__ import annotations

import pytest

from orchestratord.infra.engines import mock
from orchestratord.testing.live import LiveApp
from tests.http.support import submit, task


def test_a_default_without_a_knob_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """OD-71: the profile's own values for such knobs are not sent; asked for by the client they are a 400."""
    monkeypatch.setattr(mock, "KNOBS", ("temperature", "stop"))  # the mock refuses all others, as engines should
    with LiveApp() as app, app.session() as session:
        task_id = submit(session)
        with session.events(task_id) as events:
            assert list(events)[-1].name == "end"
        answer = session.post("/v1/tasks", json=task(sampling={"min_p": 0.1}))
        assert answer.status_code == 400
        assert answer.json()["details"]["rule"] == "unsupported_sampling"
        assert "min_p" in answer.json()["message"]


def test_an_engine_without_a_temperature_can_prove_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """OD-20: the probe asks for nothing the engine cannot do."""
    monkeypatch.setattr(mock, "KNOBS", ())
    with LiveApp() as app, app.session() as session:
        assert session.get("/readyz").status_code == 200
