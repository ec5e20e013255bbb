"""What a request gives, held to the contract: parameters and body of one operation, by validators compiled at start."""

from __future__ import annotations

import difflib
import re
from typing import Any
from urllib.parse import parse_qsl

import jsonschema_rs

from orchestratord import contract
from orchestratord.contract import Operation
from orchestratord.wire import bodies
from orchestratord.wire.errors import HttpError, short

Fields = dict[bytes, bytes]

_INTEGER = re.compile(r"-?(0|[1-9][0-9]{0,18})")
_JSON = b"application/json"


def argument(parameter: dict[str, Any]) -> str:
    """Under which name a handler gets it."""
    return str(parameter["name"]).replace("-", "_").lower()


def first_error(validator: jsonschema_rs.Draft4Validator, value: Any) -> jsonschema_rs.ValidationError | None:
    """What is wrong with a value, if anything is.

    Not `iter_errors`: it finds all that is wrong before it gives the first, each with a copy of the value, so that a
    body of 60 KiB took 20 MiB.
    """
    try:
        validator.validate(value)
    except jsonschema_rs.ValidationError as error:
        return error.with_traceback(None)
    return None


class Parameter:
    """One declared parameter with its compiled schema."""

    def __init__(self, declared: dict[str, Any]) -> None:
        self.name: str = declared["name"]
        self.key = self.name.lower().encode()
        self.argument = argument(declared)
        self.place: str = declared["in"]
        self.required = bool(declared.get("required", False))
        self.default = declared["schema"].get("default")
        self._integer = declared["schema"].get("type") == "integer"
        self._check = contract.compile_schema(declared["schema"])

    def read(self, text: str | None) -> Any:
        """The value the handler gets. Raises HttpError INVALID_PARAMS."""
        if text is None:
            if self.required:
                raise HttpError("INVALID_PARAMS", f"{self.place} parameter {self.name!r} is missing.")
            return self.default
        value: Any = int(text) if self._integer and _INTEGER.fullmatch(text) else text
        if not self._check.is_valid(value):
            error = first_error(self._check, value)
            assert error is not None
            raise HttpError("INVALID_PARAMS", f"{self.place} parameter {self.name!r}: {short(error.message)}")
        return value


class Arguments:
    """What the handler of one operation is called with."""

    def __init__(self, op: Operation) -> None:
        parameters = [Parameter(p) for p in op.parameters]
        self._path = [p for p in parameters if p.place == "path"]
        self._headers = [p for p in parameters if p.place == "header"]
        self._query = {p.name: p for p in parameters if p.place == "query"}
        self._not_given = {p.argument: p.default for p in parameters if p.place != "path"}
        self._demands = any(p.required for p in self._query.values())
        self._schema = op.body_schema or {}
        self._body = contract.compile_schema(op.body_schema) if op.body_schema is not None else None
        self._quick = contract.compile_quick(self._schema) if self._body is not None else None
        self._judged = bool(self._query) or "400" in op.responses  # else a probe or scraper: it may send what it likes
        self.takes_body = self._body is not None
        self._bulky = op.operation_id == "createArtifact"

    def read(self, scope: dict[str, Any], fields: Fields, params: dict[str, str]) -> dict[str, Any]:
        """All but the body. Raises HttpError INVALID_PARAMS, or UNSUPPORTED_MEDIA_TYPE for a body of another kind."""
        found = self._not_given.copy()
        for p in self._path:
            found[p.argument] = p.read(params[p.name])
        for p in self._headers:
            if p.key in fields or p.required:
                found[p.argument] = p.read(_text(fields, p.key))
        query = scope["query_string"]
        if (query and self._judged) or self._demands:
            self._read_query(query, found)
        if self._body is not None and (fields.get(b"content-type") != _JSON or b"content-encoding" in fields):
            _check_type(fields)
        return found

    def _read_query(self, raw: bytes, found: dict[str, Any]) -> None:
        given: dict[str, str] = {}
        for name, value in _query_pairs(raw):
            if name not in self._query:
                raise _unknown(f"There is no query parameter {name[:64]!r} here.", name, list(self._query))
            if name in given:
                raise HttpError("INVALID_PARAMS", f"query parameter {name!r} is given twice.")
            given[name] = value
        for name, parameter in self._query.items():
            found[parameter.argument] = parameter.read(given.get(name))

    def body(self, raw: bytearray) -> Any:
        """The body's document; in it an artifact's content with many values is `Encoded`, as it came.

        Raises HttpError INVALID_PARAMS.
        """
        assert self._body is not None
        assert self._quick is not None
        body, large = bodies.parse_bulky(raw) if self._bulky and bodies.is_bulky(raw) else (bodies.parse(raw), None)
        if not self._quick.is_valid(body):
            # An error brings a copy of what it is about, which takes seconds for a megabyte of small values.
            shown = body if len(raw) <= bodies.BIG else bodies.beginning(body)
            found = first_error(self._body, shown)
            if found is None:
                raise HttpError("INVALID_PARAMS", "The body does not fit its schema: something in it is too long.")
            raise self._misfit(found)
        if large is not None:
            body["content"] = large
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


def _text(fields: Fields, key: bytes) -> str | None:
    value = fields.get(key)
    return value.strip(b" \t").decode("latin-1") if value is not None else None


def _check_type(fields: Fields) -> None:
    content_type = _text(fields, b"content-type") or ""
    if content_type.partition(";")[0].strip().lower() != "application/json" or not _utf8(content_type):
        raise HttpError("UNSUPPORTED_MEDIA_TYPE", "Send the body as application/json in UTF-8.")
    if (_text(fields, b"content-encoding") or "identity").lower() != "identity":
        raise HttpError("UNSUPPORTED_MEDIA_TYPE", "Send the body without Content-Encoding.")


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
