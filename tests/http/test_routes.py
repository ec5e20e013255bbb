"""Nothing is served that no contract documents, in any spelling; what is documented has its methods and no others."""

from __future__ import annotations

import re

import pytest

from orchestratord import contract
from orchestratord.testing.live import LiveApp
from tests.http.support import RawConnection, envelope_of

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "FOO")
EXAMPLES = {
    "/v1/tasks/{id}": "/v1/tasks/6f1d2c3b-4a59-4e68-8777-86958493a2b1",
    "/v1/sessions/{id}": "/v1/sessions/6f1d2c3b-4a59-4e68-8777-86958493a2b1",
    "/v1/pools/{id}": "/v1/pools/home",
    "/v1/catalog/models/{id}": "/v1/catalog/models/qwen",
    "/v1/artifacts/{id}": "/v1/artifacts/" + "a" * 64,
    "/openapi/{name}": "/openapi/data.json",
}
PATHS = sorted({op.path for op in contract.operations()})


def concrete(path: str) -> str:
    """A path of a contract with an id in it."""
    for template, example in EXAMPLES.items():
        if path.startswith(template):
            return path.replace(template, example, 1)
    assert "{" not in path, f"no example for {path}"
    return path


def served(target: str) -> set[str]:
    """Methods the contracts have for a path, `{...}` being anything without a slash."""
    return {
        op.method
        for op in contract.operations()
        if re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", op.path), target) is not None
    }


def variations() -> list[str]:
    """Spellings that come close to a documented path without being one."""
    found = []
    for path in map(concrete, PATHS):
        head, _, tail = path.rpartition("/")
        found += [
            f"{path}/",
            f"{path}//",
            f"/{path}",
            f"{path}/.",
            f"{path}/..",
            f"{path}/x",
            f"{path};x",
            f"{path};x=1",
            f"{path}.json",
            f"{path}%20",
            f"{path}%00",
            f"{path}%2e",
            f"{path}%252f",
            f"{head}//{tail}",
            f"{head}/./{tail}",
            f"{head}/x/../{tail}",
            f"{head}/%2e/{tail}",
            f"{head}/x/%2e%2e/{tail}",
            f"{head}\\{tail}",
            path.upper(),
            path.title(),
            path.replace("/v1/", "/v2/"),
            path.replace("/v1/", "/"),
            path.replace("/v1/", "/v1.0/"),
            f"/api{path}",
        ]
    return sorted({target for target in found if not served(target)})


def encoded_slashes() -> list[str]:
    return sorted(
        {re.sub("(?<=.)/", code, concrete(path)) for path in PATHS for code in ("%2f", "%2F")}
        - set(map(concrete, PATHS))
    )


STRANGERS = [
    "/",
    "//",
    "/.",
    "/..",
    "/%2e%2e",
    "/%2f",
    "/..%2f..%2fetc/passwd",
    "/%2e%2e/%2e%2e/etc/passwd",
    "/v1",
    "/v1/",
    "/v1/replicasets",
    "/v1/replicasets/home",
    "/v1/pools/home",
    "/v1/pools/home/replicasets",
    "/v1/tasks/6f1d2c3b-4a59-4e68-8777-86958493a2b1/events",
    "/v1/sessions",
    "/v1/models",
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/ui",
    "/ui/",
    "/console",
    "/openapi",
    "/openapi/",
    "/openapi.json",
    "/openapi.yaml",
    "/swagger",
    "/swagger.json",
    "/swagger-ui/",
    "/redoc",
    "/docs/oauth2-redirect",
    "/docs/index.html",
    "/static/docs.js",
    "/health",
    "/health/",
    "/ready",
    "/live",
    "/livez",
    "/status",
    "/config",
    "/debug",
    "/debug/pprof",
    "/admin",
    "/favicon.ico",
    "/robots.txt",
    "/.well-known/security.txt",
    "/.git/config",
    "/.env",
    "/index.html",
    "/slots",
    "/props",
    "/completion",
    "/tokenize",
    "/%00",
    "/\u00e9".encode().decode("latin-1"),
    "/" + "a/" * 1000,
    "/http://127.0.0.1/healthz",
]


def ask(app: LiveApp, method: str, target: str) -> tuple[int, str | None]:
    """Send a request exactly as written, check everything that holds for any answer; status and Allow."""
    with RawConnection(app.url) as connection:
        connection.send(
            f"{method} {target} HTTP/1.1\r\nHost: {connection.host}\r\nConnection: close\r\n\r\n".encode("latin-1")
        )
        if method == "HEAD":
            status, headers = connection.head()
            fields = dict(headers)
            assert "location" not in fields
            assert "x-correlation-id" in fields
            return status, fields.get("allow")
        answer = connection.answer()
        if answer.status >= 400:
            envelope_of(answer, answer.status)
        assert not 300 <= answer.status < 400, answer
        assert answer.status < 500 or answer.status == 501, answer
        assert answer.header("location") is None or answer.status in (201, 202)
        return answer.status, answer.header("allow")


@pytest.mark.parametrize("target", variations() + STRANGERS)
def test_what_no_contract_documents_is_not_served(shared_app: LiveApp, target: str) -> None:
    """With GET and POST; an answer that is no 404 has to be a malformed id of a documented path."""
    for method in ("GET", "POST"):
        status, _ = ask(shared_app, method, target)
        assert status in (400, 404, 405), (method, target, status)
        assert status == 404 or not target.isascii() or set(target) & set("%\\;"), (method, target, status)


@pytest.mark.parametrize("target", encoded_slashes())
def test_an_encoded_slash_is_no_slash(shared_app: LiveApp, target: str) -> None:
    """A proxy in front that forbids a path sees another one than the daemon does."""
    assert ask(shared_app, "PATCH", target)[0] in (400, 404)  # 405 would mean that there is such a path


@pytest.mark.parametrize("path", PATHS)
def test_a_documented_path_has_its_methods_and_no_others(shared_app: LiveApp, path: str) -> None:
    target = concrete(path)
    declared = served(target)
    for method in METHODS:
        status, allow = ask(shared_app, method, target)
        if method in declared:
            assert status != 405, (method, path)
        elif method == "FOO":
            assert status in (400, 405), (method, path, status)
        else:
            assert status == 405, (method, path, status)
            assert sorted(str(allow).split(", ")) == sorted(declared)


@pytest.mark.parametrize("method", METHODS)
def test_no_method_helps_on_an_undocumented_path(shared_app: LiveApp, method: str) -> None:
    for target in ("/v1/replicasets", "/v1/tasks/", "/ui", "/"):
        status, _ = ask(shared_app, method, target)
        assert status == 404 or (method == "FOO" and status == 400), (method, target, status)


@pytest.mark.parametrize("target", ["*", "healthz", "", "http://", "127.0.0.1:80", "?a=1", "\\healthz"])
def test_a_target_that_is_no_path_is_refused(shared_app: LiveApp, target: str) -> None:
    for method in ("GET", "OPTIONS", "CONNECT"):
        status, _ = ask(shared_app, method, target)
        assert status in (400, 404, 405), (method, target, status)


def test_an_absolute_target_is_served_by_its_path(shared_app: LiveApp) -> None:
    """RFC 9112 3.2.2 asks servers to take it; the host in it changes nothing."""
    assert ask(shared_app, "GET", "http://elsewhere.example/healthz")[0] in (200, 400, 403)
    assert ask(shared_app, "GET", "http://elsewhere.example/v1/replicasets")[0] in (400, 403, 404)


def test_a_fragment_or_query_does_not_make_a_path(shared_app: LiveApp) -> None:
    for target in ("/v1/replicasets?x=/v1/pools", "/v1/replicasets#/v1/pools"):
        assert ask(shared_app, "GET", target)[0] in (400, 404)
