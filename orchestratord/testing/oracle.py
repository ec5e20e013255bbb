"""openapi-core as the second opinion on requests and responses, and which operation an exchange belongs to.

Answers that belong to no operation are judged by the shared response of their name, as a contract of their own: one
pseudo operation per response.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import requests
from openapi_core import Config, OpenAPI
from openapi_core.datatypes import RequestParameters
from openapi_core.validation.response.exceptions import DataValidationError
from werkzeug.datastructures import Headers, ImmutableMultiDict

from orchestratord import contract
from orchestratord.testing.frames import strict_json

LAYER = {  # status: the shared response a layer before the operations answers with
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    405: "MethodNotAllowed",
    408: "RequestTimeout",
    413: "PayloadTooLarge",
    414: "UriTooLong",
    431: "HeadersTooLarge",
    503: "ConnectionLimit",
}
Problem = tuple[str, str]  # where, what


@dataclass(slots=True)
class Asked:
    """A request as openapi-core wants it."""

    host_url: str
    path: str
    method: str
    body: bytes | None
    content_type: str
    parameters: RequestParameters


@dataclass(frozen=True, slots=True)
class Answered:
    """A response as openapi-core wants it."""

    status_code: int
    data: bytes
    content_type: str
    headers: Headers


@dataclass(frozen=True, slots=True)
class Declared:
    """The part of a contract one answer is judged by."""

    name: str  # of the operation, or of the shared response
    document: str  # the contract, or "layer"
    response: Mapping[str, Any]
    operation: contract.Operation | None


def _layer_document() -> dict[str, Any]:
    document = contract.bundle("control")
    document["paths"] = {
        f"/{name}": {"get": {"responses": {str(status): {"$ref": f"#/components/responses/{name}"}}}}
        for status, name in LAYER.items()
    }
    return document


@cache
def _api(name: str) -> OpenAPI:
    """Without security: whether a daemon wants a token is its configuration, not its contract."""
    document = contract.bundle(name) if name in contract.CONTRACTS else _layer_document()
    document.pop("security", None)
    deserializers = {
        "application/json": lambda value, **_: strict_json(value, repeats=True),
        "text/plain": lambda value, **_: value.decode("utf-8"),
        "text/html": lambda value, **_: value.decode("utf-8"),
        "application/yaml": lambda value, **_: value.decode("utf-8"),
    }
    return OpenAPI.from_dict(document, config=Config(extra_media_type_deserializers=deserializers))  # type: ignore[arg-type]


@cache
def _routes() -> tuple[tuple[re.Pattern[str], contract.Operation], ...]:
    def pattern(path: str) -> re.Pattern[str]:
        return re.compile(re.sub(r"\\{[^/]+\\}", "[^/]+", re.escape(path)))

    return tuple((pattern(operation.path), operation) for operation in contract.operations())


@cache
def layer_response(name: str) -> Mapping[str, Any]:
    """A shared response with every reference followed."""
    response: dict[str, Any] = contract.dereference(_layer_document(), {"$ref": f"#/components/responses/{name}"})
    return response


def methods(path: str) -> dict[str, contract.Operation]:
    """Every method the contracts have for a path, exactly as it was sent; {} for an unknown path."""
    return {operation.method: operation for pattern, operation in _routes() if pattern.fullmatch(path)}


def asked(request: requests.PreparedRequest) -> Asked:
    """Raises ValueError when the body was a stream, which nobody can read a second time."""
    url = urlsplit(request.url or "")
    body = request.body.encode() if isinstance(request.body, str) else request.body
    if body is not None and not isinstance(body, bytes):
        raise ValueError("the request's body is a stream: its content is not known")
    headers = Headers({name: text(value) for name, value in request.headers.items()})
    query = ImmutableMultiDict(parse_qsl(url.query, keep_blank_values=True))
    return Asked(
        host_url=f"{url.scheme}://{url.netloc}",
        path=url.path,
        method=(request.method or "").lower(),
        body=body,
        content_type=headers.get("Content-Type", ""),
        parameters=RequestParameters(query=query, header=headers),
    )


def text(value: str | bytes) -> str:
    """A header value as text."""
    return value.decode("latin-1") if isinstance(value, bytes) else value


def request_problems(request: requests.PreparedRequest, operation: contract.Operation) -> Iterator[Problem]:
    """Why the contract does not allow this request."""
    try:
        errors = list(_api(operation.contract).iter_request_errors(asked(request)))
    except ValueError as unknown:
        yield "", str(unknown)
        return
    for error in errors:
        yield from _explain(error)
    if "400" not in operation.responses:
        return  # it ignores a query it does not know
    known = {parameter["name"] for parameter in operation.parameters if parameter["in"] == "query"}
    sent = Counter(name for name, _ in parse_qsl(urlsplit(request.url or "").query, keep_blank_values=True))
    yield from ((name, "no such query parameter is declared") for name in sent if name not in known)
    yield from ((name, "a query parameter comes once") for name in sent if name in known and sent[name] > 1)


def response_problems(
    declared: Declared, request: requests.PreparedRequest, response: requests.Response, body: bytes | None
) -> Iterator[Problem]:
    """Why the contract does not allow this response; None for a body that is not there to be judged."""
    url = urlsplit(request.url or "")
    method = (request.method or "").lower()
    path = url.path
    if declared.operation is None:
        method, path = "get", f"/{declared.name}"
    question = Asked(f"{url.scheme}://{url.netloc}", path, method, None, "", RequestParameters())
    headers = Headers({name: text(value) for name, value in response.headers.items()})
    answer = Answered(response.status_code, body or b"", headers.get("Content-Type", ""), headers)
    for error in _api(declared.document).iter_response_errors(question, answer):
        of_body = isinstance(error, DataValidationError)
        for where, what in _explain(error):
            if body is not None or not of_body:
                yield ("" if of_body or not where else "header ") + where, what


def _explain(error: BaseException) -> Iterator[Problem]:
    """The real reasons inside an error of openapi-core, each with its JSON pointer."""
    cause = error.__cause__ or error
    where = getattr(error, "name", "")
    details = getattr(cause, "schema_errors", None)
    if not details:
        while cause.__cause__ is not None:
            cause = cause.__cause__
        yield where, repr(cause)
    for detail in details or ():
        yield where + "".join(f"/{part}" for part in detail.absolute_path), str(detail.message)[:500]
