"""Everybody who is connected to one server: how many may be, in all and from one address, and who goes when it is full.

A connection that serves no request is idle, whether it has sent nothing, half a head, or waits between two requests.
When there is no room for a newcomer the one that has been idle longest makes room, if that is long enough: whoever
only sits there, however many, keeps nobody out. A crowd that arrives all at once is told to come back.
"""

from __future__ import annotations

import socket
from collections import Counter
from typing import Protocol

EVICT_S = 1.0  # idle for less than this, a connection is about to be used
UNACKED_MS = 45_000  # nothing of what was sent is acknowledged for so long: the peer is gone
KEEPALIVE_S = (30, 10, 3)  # idle before the first probe, between two, and how many: for connections nothing is sent on
SEND_BUFFER = 64 * 1024  # what a slow reader may leave in the kernel
WRITE_BUFFER = 16 * 1024  # what it may leave with us before nothing more is written


class Guest(Protocol):
    """A connection, as the crowd sees it."""

    def evict(self) -> None:
        """Close now: somebody else needs the place."""


class Crowd:
    """`most` connections in all, `most_of_one` from one address; `unacked_ms` see UNACKED_MS."""

    def __init__(self, most: int, most_of_one: int | None = None, unacked_ms: int = UNACKED_MS) -> None:
        self.most = most
        self.most_of_one = most_of_one
        self._unacked_ms = unacked_ms
        self._guests: dict[Guest, str] = {}
        self._of_one: Counter[str] = Counter()
        self._idle: dict[Guest, float] = {}  # since when; the longest first
        self._parting: set[Guest] = set()  # answered for the last time, about to close: they take no place

    def __len__(self) -> int:
        return len(self._guests)

    def enter(self, guest: Guest, address: str, now: float) -> str | None:
        """Why it must leave again, or None. Either way it counts until `part` or `leave`."""
        self._guests[guest] = address
        self._of_one[address] += 1
        if self.most_of_one is not None and self._of_one[address] > self.most_of_one:
            return f"One address may have {self.most_of_one} connections. Use fewer, or close some."
        if len(self._guests) > self.most and not self._make_room(now):
            return "Too many connections. Try again shortly."
        return None

    def part(self, guest: Guest) -> bool:
        """It has had its last answer and gives up its place; whether it may linger until it has read that."""
        self.leave(guest)
        if len(self._parting) >= max(1, self.most // 4):
            return False
        self._parting.add(guest)
        return True

    def leave(self, guest: Guest) -> None:
        """Idempotent."""
        self._parting.discard(guest)
        self._idle.pop(guest, None)
        address = self._guests.pop(guest, None)
        if address is not None:
            self._of_one[address] -= 1
            if not self._of_one[address]:
                del self._of_one[address]

    def idle(self, guest: Guest, now: float) -> None:
        self._idle.setdefault(guest, now)

    def busy(self, guest: Guest) -> None:
        self._idle.pop(guest, None)

    def _make_room(self, now: float) -> bool:
        oldest, since = next(iter(self._idle.items()), (None, now))
        if oldest is None or now - since < EVICT_S:
            return False
        self.leave(oldest)
        oldest.evict()
        return True

    def prepare(self, sock: socket.socket) -> None:
        """Bound what the kernel keeps for a slow reader, and how long it believes in a silent one."""
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in zip(("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT"), KEEPALIVE_S, strict=True):
            if hasattr(socket, name):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, self._unacked_ms)
