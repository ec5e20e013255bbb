"""How a token is compared."""

from __future__ import annotations

import hmac

import pytest

from orchestratord import middleware
from orchestratord.wire.errors import HttpError


@pytest.mark.parametrize("token", [b"wrong", b"s", b"s" * 5000, "geheimß".encode(), b"secre", b"secret"])
def test_tokens_are_compared_as_digests_in_constant_time(token: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """AUTH-1006: always two digests of one length, by the standard library's constant-time comparison."""
    compared: list[tuple[bytes, bytes]] = []
    constant_time = hmac.compare_digest

    def compare(a: bytes, b: bytes) -> bool:
        compared.append((a, b))
        return constant_time(a, b)

    monkeypatch.setattr(middleware.hmac, "compare_digest", compare)
    guard = middleware.Guard(middleware.Access(token="secret"))
    headers = [(b"host", b"localhost"), (b"authorization", b"Bearer " + token)]
    scope = {"type": "http", "headers": headers, "path": "/"}
    if token == b"secret":
        assert guard.admit(scope, *middleware.gather(headers)) == "token:2bb80d"
    else:
        with pytest.raises(HttpError):
            guard.admit(scope, *middleware.gather(headers))
    ((given, known),) = compared
    assert len(given) == len(known) == 32
