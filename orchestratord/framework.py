"""Connexion, with its slow or leaky parts replaced through its own extension points.

Connexion loads the contracts, leads each operationId to its handler and runs the lifespan; what it would do per
request, in a dozen nested layers, `Front` does in one: plain functions in a stated order. What stock Connexion would
do otherwise is listed in specs/10_architecture.md.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from connexion.apps.abstract import AbstractApp
from connexion.apps.asynchronous import AsyncApi, AsyncApp, AsyncASGIApp
from connexion.exceptions import ResolverError
from connexion.middleware.lifespan import LifespanMiddleware
from connexion.middleware.main import API
from connexion.resolver import Resolver
from connexion.spec import OpenAPISpecification

from orchestratord import audit, contract
from orchestratord.contract import Operation
from orchestratord.domain.errors import Refusal
from orchestratord.domain.request import Caller
from orchestratord.middleware import BodyLimit, Guard, correlation_id, fresh_id, gather
from orchestratord.ports import Telemetry
from orchestratord.routing import Routes
from orchestratord.validation import Arguments, argument
from orchestratord.wire.errors import internal, render
from orchestratord.wire.responses import Answer, Exchange

Handler = Callable[..., Awaitable[Answer]]
Scope = dict[str, Any]

_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


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


def _check_signature(name: str, handler: Handler, op: Operation) -> None:
    if not inspect.iscoroutinefunction(inspect.unwrap(getattr(handler, "func", handler))):
        raise ContractMismatch(f"handler {name} is not async: it would run in a thread, outside the one loop")
    offered = {argument(p) for p in op.parameters} | {"caller"} | ({"body"} if op.body_schema else set())
    wanted = set(inspect.signature(handler).parameters)
    if unknown := sorted(wanted - offered):
        raise ContractMismatch(
            f"handler {name} asks for {', '.join(unknown)}, which {op.operation_id} does not declare"
        )
    if ignored := sorted(offered - wanted - {"caller"}):
        raise ContractMismatch(f"handler {name} ignores {', '.join(ignored)} of {op.operation_id}")


# -- one request ---------------------------------------------------------------------------------------------
class Endpoint:
    """One operation: its handler, and what that is called with."""

    def __init__(self, op: Operation, handler: Handler) -> None:
        self.arguments = Arguments(op)
        self.handler = handler
        self.takes_body = self.arguments.takes_body
        self.wants_caller = "caller" in inspect.signature(handler).parameters
        self.audited = audit.is_told(op.method, op.operation_id)


class _Api(AsyncApi):  # type: ignore[misc]
    """Connexion reads the contract and resolves each operation; what it made is kept by `Front`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._declared = {op.operation_id: op for op in contract.operations()}
        super().__init__(*args, **kwargs)

    def make_operation(self, operation: Any) -> Endpoint:
        op = self._declared[operation.operation_id]
        endpoint = Endpoint(op, operation.function)
        self.next_app.add(op.method, op.path, endpoint)
        return endpoint


class Front(AsyncASGIApp):  # type: ignore[misc]
    """Everything between the server and the handlers.

    An answer always has a correlation id; no exception gets past this, and nothing of one is shown.
    """

    api_cls = _Api

    def __init__(self, guard: Guard, limit: BodyLimit, telemetry: Telemetry) -> None:
        super().__init__()
        self.app = self._routes = Routes[Endpoint]()
        self._guard = guard
        self._limit = limit
        self._telemetry = telemetry

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        headers = scope["headers"]
        fields, repeated = gather(headers)
        name = correlation_id(headers) if b"x-correlation-id" in fields else fresh_id()
        exchange = Exchange(scope, receive, send, name)
        try:
            answer = await self._answer(exchange, fields, repeated)
            await answer.give(exchange)
        except Exception as error:  # the last resort: whatever it is, the client gets an envelope
            # What is refused gets no name here: its traceback leads to this frame, and both would keep the body.
            status, headers, body = render(self._refusal(error, scope, name.decode()))
            if exchange.started:
                raise  # bytes are out; the server closes the connection
            await exchange.reply(status, headers, body)

    async def _answer(self, exchange: Exchange, fields: dict[bytes, bytes], repeated: frozenset[bytes]) -> Answer:
        scope = exchange.scope
        identity = self._guard.admit(scope, fields, repeated)
        self._limit.judge(fields)
        endpoint, params = self._routes.find(scope)
        arguments = endpoint.arguments.read(scope, fields, params)
        if endpoint.takes_body:
            raw = exchange.body()
            raw = self._limit.check(raw) if raw else await self._limit.read(exchange.receive)
            arguments["body"] = endpoint.arguments.body(raw)
            del raw
        if endpoint.wants_caller:
            arguments["caller"] = Caller(exchange.correlation_id.decode(), identity)
        call = endpoint.handler(**arguments)
        del arguments  # the handler alone decides how long it needs a body
        answer = await call
        if endpoint.audited:  # and granted: a refusal was raised
            audit.tell(self._telemetry, scope, answer.status, identity, exchange.correlation_id.decode())
        return answer

    def _refusal(self, error: Exception, scope: Scope, cid: str) -> Refusal:
        if isinstance(error, Refusal):
            return error
        self._telemetry.event(
            "request_failed",
            "an unforeseen exception ended a request",
            error=error,
            method=scope["method"],
            correlation_id=cid,
            exc_info=error,
        )
        return internal()


class Declared(OpenAPISpecification):  # type: ignore[misc]
    """One of our contracts. Connexion would validate it at every start, for 100 ms and more; the lint has."""

    @classmethod
    def _validate_spec(cls, spec: Any) -> None:
        pass


class App(AsyncApp):  # type: ignore[misc]
    """A Connexion AsyncApp over our operations. `outer` are layers in front of them, outermost first."""

    def __init__(self, handlers: Mapping[str, Handler], front: Front, outer: list[Any], lifespan: Any) -> None:
        self._middleware_app = front
        AbstractApp.__init__(
            self,
            "orchestratord",
            lifespan=lifespan,
            middlewares=[LifespanMiddleware, *outer],
            resolver=Table(handlers),
        )
        # What add_api does, with a specification that is not validated once more.
        for name in contract.CONTRACTS:
            specification = Declared(contract.bundle(name))
            self.middleware.apis.append(API(specification, base_path=None, **self.middleware.options.__dict__))
        # What the first request would do: a contract that cannot be served must not wait for it.
        self.middleware.app, layers = self.middleware._build_middleware_stack()
        self.middleware.middleware_stack = layers
        self.requests = layers[1]  # what is behind the lifespan: where a server may call for a request
