"""Who may come in: tokens, public paths, local peers, hosts and origins, and where the daemon refuses to start."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from orchestratord import config, contract
from orchestratord.config import ConfigError, Settings
from orchestratord.testing.live import LiveApp, mock_settings
from orchestratord.testing.session import VerifyingSession
from tests.http.support import RawConnection, envelope_of, submit, task
from tests.http.test_routes import METHODS, PATHS, STRANGERS, concrete, variations

TOKEN = "correct-horse-battery-staple"
ROOT = Path(__file__).resolve().parents[2]


def guarded(**fields: Any) -> Settings:
    """Settings with a token; `auth_optional` and `auth` may come on top."""
    return msgspec.structs.replace(mock_settings(auth=fields.pop("auth", {})), token=TOKEN, **fields)


@pytest.fixture(scope="module")
def closed() -> Iterator[LiveApp]:
    with LiveApp(guarded()) as app:
        yield app


@pytest.fixture(scope="module")
def anonymous(closed: LiveApp) -> Iterator[VerifyingSession]:
    with closed.session() as session:
        yield session


OPERATIONS = [(op.method, concrete(op.path)) for op in contract.operations()]
BAD_TOKENS = {
    "wrong": f"Bearer {TOKEN}x",
    "shorter": f"Bearer {TOKEN[:-1]}",
    "empty": "Bearer ",
    "no token": "Bearer",
    "no scheme": TOKEN,
    "Basic": "Basic " + TOKEN,
    "digest of it": "Bearer " + hashlib.sha256(TOKEN.encode()).hexdigest(),
    "upper case": f"Bearer {TOKEN.upper()}",
    "quoted": f'Bearer "{TOKEN}"',
    "two tokens": f"Bearer {TOKEN} {TOKEN}",
    "a list": f"Bearer {TOKEN}, Bearer {TOKEN}",
    "a tab": f"Bearer\t{TOKEN}",
    "as a parameter": f"Bearer token={TOKEN}",
    "non-ASCII": "Bearer größe-日本".encode().decode("latin-1"),
    "empty header": "",
    "long": "Bearer " + "a" * 12_000,
}


# -- tokens --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_every_operation_needs_the_token(anonymous: VerifyingSession, method: str, path: str) -> None:
    """Before anything else is looked at: no body is parsed, no id is checked."""
    answer = anonymous.request(method, path, data=b"\xff" if method == "POST" else None)
    assert (answer.status_code, answer.json()["code"]) == (401, "MISSING_TOKEN")
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")


@pytest.mark.parametrize("path", ["/nope", "/v1/replicasets", "/", "/v1/tasks/"])
@pytest.mark.parametrize("method", ["GET", "PATCH", "OPTIONS"])
def test_401_comes_before_404_and_405(anonymous: VerifyingSession, method: str, path: str) -> None:
    """Without the token nobody learns what there is."""
    assert anonymous.request(method, path).status_code == 401
    assert anonymous.request(method, "/v1/tasks").status_code == 401


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("authorization", ["", "Authorization: Bearer wrong\r\n"], ids=["no token", "a wrong token"])
def test_nothing_at_all_is_open(closed: LiveApp, method: str, authorization: str) -> None:
    """H1: documented paths, spellings near them, and strangers, by every method: closed unless somebody opened it."""
    for target in sorted({*map(concrete, PATHS), *variations()[::7], *STRANGERS}):
        with RawConnection(closed.url) as connection:
            head = f"{method} {target} HTTP/1.1\r\nHost: {connection.host}\r\n{authorization}\r\n"
            connection.send(head.encode("latin-1"))
            status, headers = connection.head()
        if status == 400:  # not even a request: the parser refused it
            assert method == "FOO" or not target.isascii() or set(target) & set("%\\ "), (method, target)
            continue
        assert status == 401, (method, target, status)
        assert dict(headers)["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize("given", BAD_TOKENS.values(), ids=BAD_TOKENS)
def test_a_bad_token_is_401(anonymous: VerifyingSession, given: str) -> None:
    for path in ("/v1/pools", "/healthz", "/nope"):
        answer = anonymous.get(path, headers={"Authorization": given.encode("latin-1")})
        assert (answer.status_code, answer.json()["code"]) == (401, "BAD_TOKEN"), path
        assert 'error="invalid_token"' in answer.headers["WWW-Authenticate"]


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "Bearer "])
def test_the_scheme_is_case_insensitive(anonymous: VerifyingSession, scheme: str) -> None:
    """RFC 9110 11.1."""
    assert anonymous.get("/v1/pools", headers={"Authorization": f"{scheme} {TOKEN}"}).status_code == 200


def test_two_authorization_headers_are_401(closed: LiveApp) -> None:
    """Whichever comes first: proxies and servers disagree on which one counts."""
    good, bad = f"Authorization: Bearer {TOKEN}", "Authorization: Bearer x"
    for pair in ((good, bad), (bad, good), (good, good)):
        with RawConnection(closed.url) as connection:
            connection.send("\r\n".join(["GET /v1/pools HTTP/1.1", f"Host: {connection.host}", *pair, "", ""]).encode())
            assert envelope_of(connection.answer(), 401)["code"] == "BAD_TOKEN"


def test_a_token_of_60_kb_is_refused(closed: LiveApp) -> None:
    with RawConnection(closed.url) as connection:
        connection.get("/v1/pools", Authorization="Bearer " + "a" * 60_000)
        envelope_of(connection.answer(), 431)


def test_a_refused_request_changes_nothing(closed: LiveApp, anonymous: VerifyingSession) -> None:
    body = task()
    calls = closed.call(lambda: closed.engine().calls)
    assert anonymous.post("/v1/tasks", json=body).status_code == 401
    with closed.session(TOKEN) as session:
        assert session.get(f"/v1/tasks/{body['task_id']}").status_code == 404
        assert session.get(f"/v1/sessions/{body['session_id']}").status_code == 404
    assert closed.call(lambda: closed.engine().calls) == calls


def test_with_the_token_everything_works(closed: LiveApp) -> None:
    with closed.session(TOKEN) as session:
        task_id = submit(session)
        with session.events(task_id) as events:
            assert [event.name for event in events][-1] == "end"


def test_the_token_is_nowhere_in_the_log(closed: LiveApp, anonymous: VerifyingSession) -> None:
    anonymous.get("/v1/pools", headers={"Authorization": f"Bearer {TOKEN}-wrong"})
    with closed.session(TOKEN) as session:
        session.get("/v1/pools")
        assert TOKEN not in session.get("/metrics").text
    assert TOKEN not in closed.log.getvalue()


def test_the_log_names_the_token_by_its_digest(closed: LiveApp) -> None:
    with closed.session(TOKEN) as session:
        submit(session)
    assert f"token:{hashlib.sha256(TOKEN.encode()).hexdigest()[:6]}" in closed.log.getvalue()


def test_a_non_ascii_token_works() -> None:
    """Compared as bytes: no encoding can raise."""
    secret = "größe-日本"
    with LiveApp(msgspec.structs.replace(mock_settings(), token=secret)) as app, app.session() as session:
        assert session.get("/v1/pools", headers={"Authorization": f"Bearer {secret}".encode()}).status_code == 200
        assert session.get("/v1/pools", headers={"Authorization": "Bearer gr"}).status_code == 401


# -- what is public ------------------------------------------------------------------------------------------
PUBLIC = {
    "healthz": ["/healthz"],
    "readyz": ["/readyz"],
    "docs": ["/docs"],
    "openapi": ["/openapi/data.json", "/openapi/control.json"],
}


@pytest.mark.parametrize("name", PUBLIC)
def test_only_what_is_listed_is_public(name: str) -> None:
    with LiveApp(guarded(auth={"public": [name]})) as app, app.session() as session:
        for group, paths in PUBLIC.items():
            for path in paths:
                assert session.get(path).status_code == (200 if group == name else 401), path
        for path in ("/metrics", "/v1/pools", "/v1/capabilities", "/nope", "/healthz/", "//healthz"):
            assert session.get(path).status_code == 401, path
        bad = {"Authorization": "Bearer wrong"}
        assert session.get(PUBLIC[name][0], headers=bad).status_code == 401  # a wrong token is never fine


def test_metrics_cannot_be_public() -> None:
    with pytest.raises(msgspec.ValidationError):
        guarded(auth={"public": ["metrics"]})


# -- local peers ---------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def optional() -> Iterator[LiveApp]:
    with LiveApp(guarded(auth_optional=True)) as app:
        yield app


def test_a_local_peer_needs_no_token_if_it_is_optional(optional: LiveApp) -> None:
    with optional.session() as session:
        assert session.get("/v1/pools").status_code == 200
        assert session.get("/v1/pools", headers={"Host": "localhost:1"}).status_code == 200
        assert session.get("/v1/pools", headers={"Host": "LOCALHOST"}).status_code == 200
        assert session.get("/v1/pools", headers={"Host": "[::1]:8080"}).status_code == 200


@pytest.mark.parametrize(
    "name", ["Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "Via", "via"]
)
@pytest.mark.parametrize("value", ["for=127.0.0.1", "127.0.0.1", ""])
def test_behind_a_proxy_nobody_is_local(optional: LiveApp, name: str, value: str) -> None:
    with optional.session() as session:
        answer = session.get("/v1/pools", headers={name: value})
        assert (answer.status_code, answer.json()["code"]) == (401, "MISSING_TOKEN")
        assert session.get("/v1/pools", headers={name: value, "Authorization": f"Bearer {TOKEN}"}).status_code == 200


@pytest.mark.parametrize("name", ["X-Forwarded-Port", "X-Forwarded-Server", "X-Forwarded-Prefix", "X-Forwarded-By"])
def test_any_forwarding_header_is_a_sign_of_a_proxy(optional: LiveApp, name: str) -> None:
    with optional.session() as session:
        assert session.get("/v1/pools", headers={name: "1"}).status_code == 401


def test_a_wrong_token_is_refused_even_locally(optional: LiveApp) -> None:
    with optional.session() as session:
        assert session.get("/v1/pools", headers={"Authorization": "Bearer wrong"}).status_code == 401


# -- hosts and origins ---------------------------------------------------------------------------------------
FOREIGN = [
    "evil.example",
    "evil.example:8080",
    "127.0.0.1.evil.example",
    "localhost.evil.example",
    "127.0.0.2",
    "0.0.0.0",
    "[::2]",
    "",
    " ",
    "localhost@evil.example",
    "evil.example#localhost",
    "127.1",
    "2130706433",
]


@pytest.mark.parametrize("host", FOREIGN)
def test_a_foreign_host_is_403(shared_app: LiveApp, host: str) -> None:
    """DNS rebinding: a page on evil.example that resolves to 127.0.0.1 gets nothing."""
    for path in ("/v1/pools", "/healthz", "/nope"):
        with RawConnection(shared_app.url) as connection:
            connection.send(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            assert envelope_of(connection.answer(), 403)["code"] == "FORBIDDEN"


@pytest.mark.parametrize("host", ["127.0.0.1 ", "127.0.0.1\t", "\t localhost \t "])
def test_blanks_around_a_host_are_no_part_of_it(shared_app: LiveApp, host: str) -> None:
    """RFC 9110 5.5: a proxy in front sees the value without them."""
    with RawConnection(shared_app.url) as connection:
        connection.send(f"GET /healthz HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        assert connection.answer().status == 200


@pytest.mark.parametrize("host", ["[::1", "[::1]evil.example", "localhost:evil.example", "127.0.0.1:80:80"])
def test_a_host_that_is_no_authority_is_refused(shared_app: LiveApp, host: str) -> None:
    with RawConnection(shared_app.url) as connection:
        connection.send(f"GET /v1/pools HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        assert connection.answer().status in (400, 403)


ORIGINS = [
    "http://evil.example",
    "https://evil.example:8080",
    "null",
    "",
    "http://127.0.0.1.evil.example",
    "file://",
    "http://localhost.evil.example",
    "evil",
    "http://localhost@evil.example",
]


@pytest.mark.parametrize("origin", ORIGINS)
def test_a_foreign_origin_is_403(shared_session: VerifyingSession, origin: str) -> None:
    answer = shared_session.post("/v1/tasks", json=task(), headers={"Origin": origin})
    assert (answer.status_code, answer.json()["code"]) == (403, "FORBIDDEN")
    assert not [name for name in answer.headers if name.lower().startswith("access-control")]


@pytest.mark.parametrize("origin", ["http://localhost:3000", "http://127.0.0.1", "http://[::1]:8080"])
def test_a_local_origin_is_fine(shared_session: VerifyingSession, origin: str) -> None:
    assert shared_session.get("/v1/pools", headers={"Origin": origin}).status_code == 200


def test_allowed_hosts_and_origins_are_allowed() -> None:
    settings = mock_settings(auth={"allowed_hosts": ["GPU-Box.lan"], "allowed_origins": ["https://ui.example"]})
    with LiveApp(settings) as app, app.session() as session:
        assert session.get("/healthz", headers={"Host": "gpu-box.lan:8080"}).status_code == 200
        assert session.get("/healthz", headers={"Host": "other.lan"}).status_code == 403
        assert session.get("/healthz", headers={"Origin": "https://ui.example"}).status_code == 200
        assert session.get("/healthz", headers={"Origin": "https://ui.example.evil"}).status_code == 403
        assert session.get("/healthz", headers={"Origin": "http://ui.example"}).status_code == 403


# -- starting ------------------------------------------------------------------------------------------------
HOME = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "gpu-box.lan", "127.0.0.1.evil.example", "", "0"])
def test_a_reachable_address_needs_a_token(host: str) -> None:
    with pytest.raises(ConfigError, match="AUTH_TOKEN"):
        config.load(None, {"ORCHD_SERVER__HOST": f'"{host}"'})
    assert config.load(None, {"ORCHD_SERVER__HOST": f'"{host}"', "AUTH_TOKEN": "x"}).token == "x"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.8.9.10"])
def test_a_loopback_address_needs_none(host: str) -> None:
    assert config.load(None, {"ORCHD_SERVER__HOST": host}).token is None


@pytest.mark.parametrize(
    "environ", [{"AUTH_TOKEN": ""}, {"AUTH_TOKEN": "  \n"}, {"AUTH_TOKEN_FILE": "/nowhere/at/all"}]
)
def test_a_token_that_is_none_is_a_mistake(environ: dict[str, str]) -> None:
    """Somebody meant to protect the daemon: it must not start open."""
    with pytest.raises(ConfigError, match="AUTH_TOKEN"):
        config.load(None, environ)


def test_a_token_file_is_read_without_its_line_end(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("secret\n")
    assert config.load(None, {"AUTH_TOKEN_FILE": str(file)}).token == "secret"
    file.write_text("\n")
    with pytest.raises(ConfigError, match="empty"):
        config.load(None, {"AUTH_TOKEN_FILE": str(file)})


def test_a_token_has_no_place_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text('token = "canary-secret"\n')
    with pytest.raises(ConfigError, match="AUTH_TOKEN") as caught:
        config.load(file, {})
    assert "canary-secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("environ", "text", "says"),
    [
        ({"ORCHD_SERVER__HOST": "0.0.0.0"}, "", "AUTH_TOKEN"),
        ({}, "[server]\nprot = 1\n", "'port'"),
        ({}, "[server\n", "cannot be parsed"),
        ({"ORCHD_SERVR__PORT": "1"}, "", "ORCHD_SERVER"),
        (
            {},
            '[[pools]]\nid = "home"\nengine = "llamacpp"\nmodel = "m"\nreplicas = [{id = "r", mock = {}}]\n',
            "allow_mock",
        ),
    ],
)
def test_the_command_line_refuses_clearly(tmp_path: Path, environ: dict[str, str], text: str, says: str) -> None:
    """Exit code 78 (EX_CONFIG), one line that says what to do, no trace."""
    file = tmp_path / "config.toml"
    file.write_text(text)
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "orchestratord", "serve", "-c", str(file), "--port", "0"],
        env={**HOME, **environ},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert ended.returncode == 78
    assert says in ended.stderr
    assert "Traceback" not in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1
