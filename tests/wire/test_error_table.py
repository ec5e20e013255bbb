"""How long to wait, on the wire: whole seconds never shorter than the milliseconds beside them (RFC 9110 10.2.3)."""

from __future__ import annotations

import orjson
import pytest

from orchestratord.domain.errors import AdmissionReject, InvalidParams, PoolUnready
from orchestratord.wire.errors import render


@pytest.mark.parametrize(("ms", "seconds"), [(1, 1), (999, 1), (1000, 1), (1001, 2), (1500, 2), (59_001, 60)])
@pytest.mark.parametrize("kind", [AdmissionReject, PoolUnready])
def test_seconds_are_rounded_up_and_milliseconds_stand_beside(kind: type, ms: int, seconds: int) -> None:
    """ORCH-2007."""
    status, headers, body = render(kind("Later.", retry_after_ms=ms, retriable=True))
    told = dict(headers)
    assert status in (429, 503)
    assert (told[b"retry-after"], told[b"x-backoff-ms"]) == (b"%d" % seconds, b"%d" % ms)
    assert orjson.loads(body)["retry_after_ms"] == ms


def test_a_429_without_an_estimate_still_says_when() -> None:
    _, headers, body = render(AdmissionReject("Later."))
    assert {name: value for name, value in headers if name in (b"retry-after", b"x-backoff-ms")} == {
        b"retry-after": b"1",
        b"x-backoff-ms": b"1000",
    }
    assert orjson.loads(body)["retry_after_ms"] == 1000


def test_a_refusal_for_good_has_no_wait() -> None:
    _, headers, _ = render(InvalidParams("Never."))
    assert {name for name, _ in headers} == {b"content-type", b"content-length"}
