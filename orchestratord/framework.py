"""Connexion, with its slow or leaky parts replaced through its own extension points.

Connexion stays the router (operationId -> handler) and the middleware frame; the routing table, the validation
of parameters and bodies and the calling of handlers are ours, compiled once at start. What stock Connexion
would do otherwise is listed in specs/10_architecture.md.
"""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import parse_qsl

import jsonschema_rs
from connexion.apps.abstract import AbstractApp
from connexion.apps.asynchronous import AsyncApi, AsyncApp, AsyncASGIApp
from connexion.exceptions import ResolverError
from connexion.middleware.abstract import ROUTING_CONTEXT, RoutedAPI, RoutedMiddleware, SpecMiddleware
from connexion.middleware.lifespan import LifespanMiddleware
from connexion.middleware.main import API
from connexion.resolver import Resolver
from connexion.spec import OpenAPISpecification

from orchestratord import contract
from orchestratord.contract import Operation
from orchestratord.domain.request import Caller
from orchestratord.wire import bodies
from orchestratord.wire.errors import HttpError, short

Handler = Callable[..., Awaitable[Any]]
Scope = dict[str, Any]

_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_INTEGER = re.compile(r"-?(0|[1-9][0-9]{0,18})")


def snake_case(operation_id: str) -> str:
    """createTask -> create_task."""
    return _CAMEL.sub("_", operation_id).lower()


class ContractMismatch(Exception):
    """Contracts and handlers disagree; the daemon must not start."""


class Table(Resolver):  # type: ignore[misc]
    """operationId -> handler, complete in both directions."""

    def __init__(self, handlers: Mapping[str, Handler]) -> None:
        super().__init__(self._find)
        self._handlers = handlers
        operations = {op.operation_id: op for op in contract.operations()}
        expected = {snake_case(operation_id): op for operation_id, op in operations.items()}
        if missing := sorted(expected.keys() - handlers.keys()):
            raise ContractMismatch(f"no handler for: {', '.join(missing)}")
        if surplus := sorted(handlers.keys() - expected.keys()):
            raise ContractMismatch(f"no operation for the handlers: {', '.join(surplus)}")
        for name, handler in handlers.items():
            _check_signature(name, handler, expected[name])

    def _find(self, operation_id: str) -> Handler:
        try:
            return self._handlers[snake_case(operation_id)]
        except KeyError:
            raise ResolverError(f"no handler for {operation_id}") from None


def _argument(parameter: dict[str, Any]) -> str:
    return str(parameter["name"]).replace("-", "_").lower()


def _check_signature(name: str, handler: Handler, op: Operation) -> None:
    if not inspect.iscoroutinefunction(inspect.unwrap(getattr(handler, "func", handler))):
        raise ContractMismatch(f"handler {name} is not async: it would run in a thread, outside the one loop")
    offered = {_argument(p) for p in op.parameters} | {"caller"} | ({"body"} if op.body_schema else set())
    wanted = set(inspect.signature(handler).parameters)
    if unknown := sorted(wanted - offered):
        raise ContractMismatch(
            f"handler {name} asks for {', '.join(unknown)}, which {op.operation_id} does not declare"
        )
    if ignored := sorted(offered - wanted - {"caller"}):
        raise ContractMismatch(f"handler {name} ignores {', '.join(ignored)} of {op.operation_id}")


# -- routing -------------------------------------------------------------------------------------------------
class Routing(SpecMiddleware):  # type: ignore[misc]
    """Exact paths by dictionary, the others by one regular expression each. No redirects, HEAD only if declared."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self._static: dict[str, dict[str, Scope]] = {}
        self._dynamic: dict[str, tuple[re.Pattern[str], dict[str, Scope]]] = {}

    def add_api(self, specification: Any, **_: Any) -> None:
        for path, item in specification["paths"].items():
            if "{" in path:
                pattern = re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", path)
                methods = self._dynamic.setdefault(pattern, (re.compile(pattern), {}))[1]
            else:
                methods = self._static.setdefault(path, {})
            for method, raw in item.items():
                if isinstance(raw, dict) and "operationId" in raw:
                    methods[method.upper()] = {"api_base_path": "", "operation_id": raw["operationId"]}

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        # A decoded slash would let a path mean something else here than to a proxy in front.
        methods, params = self._match("" if b"%2f" in scope["raw_path"].lower() else scope["path"])
        context = methods.get(scope["method"])
        if context is None:
            allow = ", ".join(sorted(methods))
            raise HttpError("METHOD_NOT_ALLOWED", f"Use {allow} here.", headers=[(b"allow", allow.encode())])
        scope["path_params"] = params
        scope.setdefault("extensions", {})[ROUTING_CONTEXT] = context
        await self.app(scope, receive, send)

    def _match(self, path: str) -> tuple[dict[str, Scope], dict[str, str]]:
        methods = self._static.get(path)
        if methods is not None:
            return methods, {}
        for compiled, dynamic in self._dynamic.values():
            if match := compiled.fullmatch(path):
                return dynamic, match.groupdict()
        raise HttpError("NOT_FOUND", "No operation has this path. GET /docs lists what is served.")


# -- validation ----------------------------------------------------------------------------------------------
class _Parameter:
    """One declared parameter with its compiled schema."""

    def __init__(self, declared: dict[str, Any]) -> None:
        self.name: str = declared["name"]
        self.key = self.name.lower().encode()
        self.argument = _argument(declared)
        self.place: str = declared["in"]
        self.required = bool(declared.get("required", False))
        self._integer = declared["schema"].get("type") == "integer"
        self._default = declared["schema"].get("default")
        self._check = contract.compile_schema(declared["schema"])

    def read(self, text: str | None) -> Any:
        """The value the handler gets. Raises HttpError INVALID_PARAMS."""
        if text is None:
            if self.required:
                raise HttpError("INVALID_PARAMS", f"{self.place} parameter {self.name!r} is missing.")
            return self._default
        value: Any = int(text) if self._integer and _INTEGER.fullmatch(text) else text
        error = next(self._check.iter_errors(value), None)
        if error is not None:
            raise HttpError("INVALID_PARAMS", f"{self.place} parameter {self.name!r}: {short(error.message)}")
        return value


class ValidatedOperation:
    """Checks parameters and body of one operation against the contract, then goes on to its handler."""

    def __init__(self, next_app: Any, op: Operation) -> None:
        self._next = next_app
        parameters = [_Parameter(p) for p in op.parameters]
        self._path = [p for p in parameters if p.place == "path"]
        self._headers = [p for p in parameters if p.place == "header"]
        self._query = {p.name: p for p in parameters if p.place == "query"}
        self._body = contract.compile_schema(op.body_schema) if op.body_schema is not None else None
        self._schema = op.body_schema or {}
        self._judges_query = "400" in op.responses  # a probe or scraper may send what it likes

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        arguments: dict[str, Any] = {}
        for p in self._path:
            arguments[p.argument] = p.read(scope["path_params"][p.name])
        for p in self._headers:
            arguments[p.argument] = p.read(_header(scope, p.key))
        if self._query or (scope["query_string"] and self._judges_query):
            self._read_query(scope["query_string"], arguments)
        if self._body is not None:
            arguments["body"] = await self._read_body(scope, receive)
        scope["arguments"] = arguments
        await self._next(scope, receive, send)

    def _read_query(self, raw: bytes, arguments: dict[str, Any]) -> None:
        given: dict[str, str] = {}
        for name, value in _query_pairs(raw):
            if name not in self._query:
                raise _unknown(f"There is no query parameter {name[:64]!r} here.", name, list(self._query))
            if name in given:
                raise HttpError("INVALID_PARAMS", f"query parameter {name!r} is given twice.")
            given[name] = value
        for name, parameter in self._query.items():
            arguments[parameter.argument] = parameter.read(given.get(name))

    async def _read_body(self, scope: Scope, receive: Any) -> Any:
        content_type = _header(scope, b"content-type") or ""
        if content_type.partition(";")[0].strip().lower() != "application/json" or not _utf8(content_type):
            raise HttpError("UNSUPPORTED_MEDIA_TYPE", "Send the body as application/json in UTF-8.")
        if (_header(scope, b"content-encoding") or "identity").lower() != "identity":
            raise HttpError("UNSUPPORTED_MEDIA_TYPE", "Send the body without Content-Encoding.")
        raw = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise HttpError("INVALID_PARAMS", "The client went away before its body was complete.")
            raw += message.get("body", b"")
            if not message.get("more_body"):
                break
        body = bodies.parse(raw)
        assert self._body is not None
        if not self._body.is_valid(body):
            # An error brings a copy of what it is about, which takes seconds for a megabyte of small values.
            shown = body if len(raw) <= bodies.BIG else bodies.beginning(body)
            found = next(self._body.iter_errors(shown), None)
            if found is None:
                raise HttpError("INVALID_PARAMS", "The body does not fit its schema: something in it is too long.")
            raise self._misfit(found)
        return body

    def _misfit(self, error: jsonschema_rs.ValidationError) -> HttpError:
        where = "/".join(str(step)[:64] for step in error.instance_path)
        place = f"body field {where}" if where else "body"
        unexpected = getattr(error.kind, "unexpected", None)
        if unexpected:
            known = _known_fields(self._schema, error.schema_path)
            return _unknown(f"{place}: unknown field {unexpected[0][:64]!r}.", unexpected[0], known)
        reason = short(error.message)
        return HttpError(
            "INVALID_PARAMS", f"{place}: {reason}", errors=[{"path": f"/{where}"[:512], "message": reason}]
        )


def _known_fields(schema: Any, path: Any) -> list[str]:
    for step in list(path)[:-1]:
        schema = schema[step]
    return list(schema.get("properties", ()))


def _unknown(message: str, name: str, known: list[str]) -> HttpError:
    close = difflib.get_close_matches(name[:64], known, n=1)
    if close:
        return HttpError("INVALID_PARAMS", f"{message} Did you mean {close[0]!r}?", did_you_mean=close[0])
    listed = f" Known: {', '.join(sorted(known))}." if known else ""
    return HttpError("INVALID_PARAMS", message + listed)


def _header(scope: Scope, key: bytes) -> str | None:
    """Its value; several lines of one name mean one list (RFC 9110 5.3), so that none of them can hide another."""
    values = [value.strip(b" \t") for name, value in scope["headers"] if name == key]
    return b", ".join(values).decode("latin-1") if values else None


def _utf8(content_type: str) -> bool:
    _, _, parameters = content_type.lower().partition(";")
    for parameter in parameters.split(";"):
        name, _, value = parameter.strip().partition("=")
        if name.strip() == "charset" and value.strip().strip('"') not in ("utf-8", "utf8"):
            return False
    return True


def _query_pairs(raw: bytes) -> list[tuple[str, str]]:
    try:
        return parse_qsl(raw.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=32)
    except ValueError:
        raise HttpError("INVALID_PARAMS", "The query string is not valid.") from None


class _ValidationApi(RoutedAPI):  # type: ignore[misc]
    def __init__(self, *args: Any, next_app: Any, **kwargs: Any) -> None:
        self._declared = {op.operation_id: op for op in contract.operations()}
        super().__init__(*args, next_app=next_app, **kwargs)
        self.add_paths()

    def make_operation(self, operation: Any) -> ValidatedOperation:
        return ValidatedOperation(self.next_app, self._declared[operation.operation_id])


class Validation(RoutedMiddleware):  # type: ignore[misc]
    api_cls = _ValidationApi


# -- calling the handler -------------------------------------------------------------------------------------
class Endpoint:
    """Calls a handler with what the contract declares; what it returns is an ASGI response."""

    def __init__(self, operation: Any) -> None:
        self.operation_id = operation.operation_id
        self._handler: Handler = operation.function
        self._wants_caller = "caller" in inspect.signature(self._handler).parameters

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        arguments = scope["arguments"]
        if self._wants_caller:
            state = scope["state"]
            arguments["caller"] = Caller(state["correlation_id"], state["identity"])
        response = await self._handler(**arguments)
        await response(scope, receive, send)


class _Api(AsyncApi):  # type: ignore[misc]
    def make_operation(self, operation: Any) -> Endpoint:
        return Endpoint(operation)


class _ASGIApp(AsyncASGIApp):  # type: ignore[misc]
    api_cls = _Api


class Declared(OpenAPISpecification):  # type: ignore[misc]
    """One of our contracts. Connexion would validate it at every start, for 100 ms and more; the lint has."""

    @classmethod
    def _validate_spec(cls, spec: Any) -> None:
        pass


class App(AsyncApp):  # type: ignore[misc]
    """A Connexion AsyncApp over our operations. `outer` is the onion in front of routing, outermost first."""

    def __init__(self, handlers: Mapping[str, Handler], outer: list[Any], lifespan: Any) -> None:
        self._middleware_app = _ASGIApp()
        AbstractApp.__init__(
            self,
            "orchestratord",
            lifespan=lifespan,
            middlewares=[*outer, Routing, Validation, LifespanMiddleware],
            resolver=Table(handlers),
        )
        # What add_api does, with a specification that is not validated once more.
        for name in contract.CONTRACTS:
            specification = Declared(contract.bundle(name))
            self.middleware.apis.append(API(specification, base_path=None, **self.middleware.options.__dict__))
