"""The grammar of JSON, case by case: what RFC 8259 has is read, what it lacks is a 400, and nothing is a fault.

The cases follow the kinds of the public JSON parsing suites (accept, reject, either) and are typed anew.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from orchestratord import contract
from orchestratord.testing.live import LiveApp
from orchestratord.testing.session import VerifyingSession
from tests.http.support import RawConnection, envelope_of

JSON = {"Content-Type": "application/json"}
ROUTES = sorted(op.path.replace("{id}", "home") for op in contract.operations() if op.body_schema is not None)

ACCEPT = [  # values: each is read wherever a value may stand
    *(b"0", b"-0", b"1", b"-1", b"123", b"0.5", b"-0.5", b"1.0", b"1e0", b"1E0", b"1e+0", b"1e-0", b"1E+2", b"20e1"),
    *(b"123.456e78", b"-0.0", b"0e1", b"0e+1", b"1e-300", b"-1e-300", b"9007199254740991", b"-9007199254740991"),
    *(b"true", b"false", b"null", b"[]", b"{}", b"[ ]", b"{ }", b"[1]", b"[1,2]", b" [1 , 2] ", b"[[]]", b"[{}]"),
    *(b'{"":0}', b'{"a":{"b":[]}}', b'{"a":1,"b":2}', b'{"a":null}', b'{"\\u0000":1}', b'{"a b":1}', b'{"\\"":1}'),
    *(b'""', b'" "', b'"a"', b'"\\""', b'"\\\\"', b'"\\/"', b'"/"', b'"\\b\\f\\n\\r\\t"', b'"\\u0061"', b'"\\u00e9"'),
    *(b'"\\u20ac"', b'"\\ud834\\udd1e"', b'"\\uD834\\uDD1E"', b'"\\u0000"', b'"\\u001f"', b'"\\u2028\\u2029"'),
    *('"é"'.encode(), '"€"'.encode(), '"𝄞"'.encode(), '"\u2028"'.encode(), '"\ufeff"'.encode(), b'"\x7f"'),
    *('"\U0010ffff"'.encode(), '"\ufffe\uffff"'.encode(), '"\u200b"'.encode()),
    *(b"\t1\n", b"\r\n1\r\n", b"[\n1\t,\r2 ]", b'{"a"\n:\t1}', b"[" * 20 + b"]" * 20),
]
REJECT = [
    # numbers
    *(b"+1", b"-", b"--1", b"-+1", b"01", b"-01", b"00", b"-00", b".5", b"-.5", b"1.", b"-1.", b"1.e1", b"1e", b"1e+"),
    *(b"1e-", b"1E", b"1eE2", b"1e1.5", b"1.2.3", b"1,5", b"1_000", b"1 000", b"0x1", b"0b1", b"0o7", b"1f", b"1L"),
    *(b"NaN", b"-NaN", b"Infinity", b"-Infinity", b"+Infinity", b"Inf", b"nan", b"infinity", b"- 1", b"1e 1", b"1a"),
    *("\uff11".encode(), "\u0661".encode(), "\u22121".encode(), b"1\x00", b"1#", b"1-1", b"1/2", b"1e400", b"-1e400"),
    # words
    *(b"True", b"TRUE", b"tru", b"truee", b"fals", b"nul", b"nulll", b"Null", b"None", b"undefined", b"yes", b"a"),
    # arrays
    *(
        b"[",
        b"]",
        b"[1",
        b"[1,",
        b"[,",
        b"[,1]",
        b"[1,]",
        b"[1,,2]",
        b"[,]",
        b"[1 2]",
        b"[1;2]",
        b"[1:2]",
        b"[1}",
        b"[]]",
    ),
    *(
        b"[a]",
        b"[1,\n1\n,1",
        b"[[]",
        b"[*]",
        b"[1,...]",
        b"[\x0b]",
        b"[\x0c]",
        "[\u00a0]".encode(),
        "[\u2060]".encode(),
    ),
    # objects
    *(b"{", b"}", b'{"a"', b'{"a":', b'{"a":1', b'{"a":1,', b'{"a":1,}', b'{"a":1,,"b":2}', b'{,"a":1}', b'{"a"}'),
    *(b'{"a" 1}', b'{"a"::1}', b'{"a",1}', b"{a:1}", b"{'a':1}", b"{1:1}", b"{null:1}", b"{[]:1}", b'{"a":1 "b":2}'),
    *(b'{"a":1}}', b'{"a":1]', b'{"a":a}', b'{"a"=1}', b"{:1}", b"{:}", b"{,}", b'{"a":}', b'{"a":1;}', b'{"a":"b}'),
    # strings
    *(b'"', b"'a'", b'a"', b'"\\', b'"\\"', b'"\\x41"', b'"\\a"', b'"\\0"', b'"\\\'"', b'"\\u"', b'"\\u1"', b'"\\u12"'),
    *(
        b'"\\u123"',
        b'"\\u12g4"',
        b'"\\U0041"',
        b'"\\u{41}"',
        b'"\\ "',
        b'"\\\n"',
        b'"a\x00b"',
        b'"a\x1fb"',
        b'"\n"',
        b'"\t"',
    ),
    *(
        b'"\r"',
        b'"\\\xc3\xa9"',
        b'"a""b"',
        b'"a" "b"',
        b"`a`",
        b"\xe2\x80\x9ca\xe2\x80\x9d",
        b'"\\uD834\\u"',
        b'"\\uD834\\',
    ),
    # bytes
    *(
        b'"\xff"',
        b'"\x80"',
        b'"\xc3"',
        b'"\xc3\x28"',
        b'"\xe2\x82"',
        b'"\xc0\x80"',
        b'"\xe0\x80\xaf"',
        b'"\xf4\x90\x80\x80"',
    ),
    *(b'"\xed\xa0\x80"', b'"\xed\xb0\x80"', b'"\xf8\x88\x80\x80\x80"', b"\xff", b"\xc3\xa9", b'"\xe9"'),
    # structure
    *(
        b"/**/1",
        b"1//",
        b"1 /* a */",
        b"#1",
        b"<!-- 1 -->",
        b"1 1",
        b"1,",
        b",1",
        b"[][]",
        b"{}{}",
        b"\x00",
        b"\x0b1",
        b"\x0c1",
    ),
    *("\u00a01".encode(), "\u20281".encode(), b"*", b"<null>", b"\\u0031", b"&", b"(1)", b"@", b"$1", b"%31", b"1\x1a"),
]
EITHER = [  # allowed by the grammar, and yet readers disagree: an answer, whichever
    *(
        b'"\\ud800"',
        b'"\\udc00"',
        b'"\\ud800\\ud800"',
        b'"\\udc00\\ud800"',
        b'"\\ud800a"',
        b'"\\ud834\\n"',
        b'{"\\ud800":1}',
    ),
    *(
        b'{"a":1,"a":2}',
        b'{"a":1,"\\u0061":2}',
        b"1e309",
        b"-1e309",
        b"1e-400",
        b"123123e100000",
        b"1" * 400,
        b"9" * 5000,
    ),
    *(
        b"0." + b"1" * 400,
        b"[" * 500 + b"]" * 500,
        b'{"a":' * 90 + b"1" + b"}" * 90,
    ),
    *(b'"' + b"a" * 100_000 + b'"', b"[" + b"0," * 10_000 + b"0]", b'"\\u0041' * 2 + b'"'),
]

BEYOND = [  # integers: no 53, 63 or 64 bits hold them, and some readers make another number of them
    *(b"9007199254740992", b"-9007199254740992", b"9223372036854775808", b"-9223372036854775809"),
    *(b"18446744073709551615", b"18446744073709551616", b"1" + b"0" * 30, b"[1, -" + b"9" * 40 + b" ]", b"9" * 300),
    b'"a\\\\","w":' + b"7" * 20,
]
WITHIN = [  # as many digits, but not of an integer
    *(b"0." + b"1" * 30, b"1234567890123456789012.5", b"-12345678901234567890e2", b"12345678901234567890E-7"),
    *(b'"12345678901234567890"', b'{"12345678901234567890":1}', b'"\\", 12345678901234567890, \\""', b"1e30"),
]


def stored(session: VerifyingSession, value: bytes) -> Any:
    """The answer to an artifact whose content holds `value`."""
    body = b'{"kind":"other","content":{"v":' + value + b"}}"
    return session.post("/v1/artifacts", data=body, headers=JSON)


@pytest.mark.parametrize("value", ACCEPT, ids=repr)
def test_what_json_has_is_read_and_comes_back(shared_session: VerifyingSession, value: bytes) -> None:
    """The value of the text is what is kept, however it was spelt."""
    answer = stored(shared_session, value)
    assert answer.status_code == 201, answer.text
    kept = shared_session.get(answer.headers["Location"]).json()["content"]["v"]
    assert kept == json.loads(value)


@pytest.mark.parametrize("value", REJECT, ids=repr)
def test_what_json_lacks_is_400(shared_session: VerifyingSession, value: bytes) -> None:
    """And the reason is the syntax, whatever the schema would have said."""
    answer = stored(shared_session, value)
    assert answer.status_code == 400, answer.text
    assert answer.json()["details"]["rule"] == "body_syntax"


@pytest.mark.parametrize("value", BEYOND, ids=lambda value: repr(value)[:40])
def test_an_integer_is_kept_or_refused_never_rounded(shared_session: VerifyingSession, value: bytes) -> None:
    """Also one so long that the parser itself would make a float of it."""
    answer = stored(shared_session, value)
    assert answer.status_code == 400, answer.text
    assert answer.json()["details"]["rule"] == "body_syntax"


@pytest.mark.parametrize("value", WITHIN, ids=repr)
def test_digits_alone_make_no_integer(shared_session: VerifyingSession, value: bytes) -> None:
    answer = stored(shared_session, value)
    assert answer.status_code == 201, answer.text
    assert shared_session.get(answer.headers["Location"]).json()["content"]["v"] == json.loads(value)


@pytest.mark.parametrize("value", EITHER, ids=lambda value: repr(value)[:40])
def test_what_readers_disagree_about_has_an_answer(shared_session: VerifyingSession, value: bytes) -> None:
    """Read or refused; when read it also comes back as valid JSON."""
    answer = stored(shared_session, value)
    assert answer.status_code in (201, 400), answer.text
    if answer.status_code == 201:
        assert shared_session.get(answer.headers["Location"]).status_code == 200


@pytest.mark.parametrize("path", ROUTES)
def test_every_route_refuses_every_such_body(shared_app: LiveApp, path: str) -> None:
    """As the whole body, on one connection: each answer is an envelope, and the connection is of use for the next."""
    with RawConnection(shared_app.url) as connection:
        for value in (*REJECT, *EITHER, b"", b" ", b"\xef\xbb\xbf{}", b"\xef\xbb\xbf", "{}".encode("utf-16")):
            head = f"POST {path} HTTP/1.1\r\nHost: {connection.host}\r\nContent-Type: application/json\r\n"
            connection.send(f"{head}Content-Length: {len(value)}\r\n\r\n".encode() + value)
            envelope_of(connection.answer(), 400)
