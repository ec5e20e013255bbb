"""Where log lines go. Writing one never raises and never waits: a reader that stalls must not stall the daemon."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TextIO

PENDING_BYTES = 256 * 1024  # kept for a reader that is slow; what comes on top is dropped, and counted


class Lines:
    """`notice(n)`: the line that tells of n dropped ones, once there is room again."""

    def __init__(self, stream: TextIO, notice: Callable[[int], str]) -> None:
        self._notice = notice
        self._pending = b""
        self._dropped = 0
        self._stream = stream
        self._send = _sender(stream)

    def write(self, line: bytes) -> None:
        """A line of UTF-8 without its end."""
        if self._send is None:
            with suppress(OSError, ValueError):  # closed: nobody is left who could be told
                self._stream.write(line.decode() + "\n")
                self._stream.flush()
            return
        if self._pending:
            self._flush()
        if len(self._pending) > PENDING_BYTES:
            self._dropped += 1
            return
        if self._dropped:
            line, self._dropped = b"%b\n%b" % (self._notice(self._dropped).encode(), line), 0
        self._pending += line + b"\n"
        self._flush()

    def _flush(self) -> None:
        assert self._send is not None
        try:
            while self._pending:
                self._pending = self._pending[self._send(self._pending) :]
        except OSError:  # it would wait, or the disk is full: what is left goes on where it stopped
            pass


def _sender(stream: TextIO) -> Callable[[bytes], int] | None:
    """A way past the stream's buffer, which would lose count of what a full disk took; None for one without a file.

    To a pipe, a socket or a terminal it raises BlockingIOError where it would wait: Ctrl-S or a connection that hangs
    stops a terminal for hours. A description of its own: others that have the same one (a shell) must not find it
    changed.
    """
    try:
        fd = stream.fileno()
        mode = os.fstat(fd).st_mode
        if stat.S_ISFIFO(mode) or os.isatty(fd):
            own = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
            return lambda data: os.write(own, data)
        if stat.S_ISSOCK(mode):
            peer = socket.socket(fileno=os.dup(fd))
            return lambda data: peer.send(data, socket.MSG_DONTWAIT)
        return partial(os.write, fd)
    except (OSError, ValueError):
        pass
    return None
