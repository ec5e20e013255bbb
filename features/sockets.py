"""Connections no ordinary client makes: too slow to send, too slow to read."""

from __future__ import annotations

import socket
from http.client import HTTPResponse
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from requests.structures import CaseInsensitiveDict

from orchestratord.testing.session import VerifyingSession


class Narrow(HTTPAdapter):
    """Connections that the system buffers little for on our side."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        options = [(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)]
        super().init_poolmanager(*args, **kwargs, socket_options=options)


def trickle(door: VerifyingSession, data: bytes) -> requests.Response:
    """Send bytes of our own making and no more; the answer passes the verifier like any other."""
    host, port = door.base_url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        connection.sendall(data)
        raw = HTTPResponse(connection, method="GET")
        raw.begin()
        body = raw.read()
    answer = requests.Response()
    answer.status_code = raw.status
    answer.headers = CaseInsensitiveDict(raw.getheaders())
    answer._content = body
    answer.request = requests.Request("GET", door.url("/healthz")).prepare()
    door.verify_exchange(answer, body, complete=True)
    return answer
