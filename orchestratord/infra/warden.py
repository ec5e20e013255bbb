"""Stands between the daemon and one engine, so that the engine never outlives the daemon, not even its kill -9.

    python -I -S warden.py LIFELINE COMMAND...

LIFELINE is a descriptor whose other end only the daemon holds. The engine's pid, or "!" and why it could not be
started, is written to it once; when it reads as ended, everything the engine started is killed. SIGTERM is passed on to
the engine's process group. Exits as the engine did. Standard library only: it is run as a script, without the package.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import select
import signal
import subprocess
import sys

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
LINUX = sys.platform.startswith("linux")
_libc = ctypes.CDLL(None) if LINUX else None  # loaded here: the child may not load anything between fork and exec


def _prctl(option: int, value: int) -> None:
    if _libc is not None:
        _libc.prctl(option, value, 0, 0, 0)


def _children() -> list[int]:
    """Our children, adopted ones included; none where the system does not say."""
    try:
        with open(f"/proc/self/task/{os.getpid()}/children") as listing:
            return [int(pid) for pid in listing.read().split()]
    except OSError:
        return []


def _send(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _watch(engine: int, lifeline: int, wakeups: int) -> int | None:
    """Wait until the engine has ended, and return its wait status; None when the daemon is gone instead."""
    while True:
        readable, _, _ = select.select([lifeline, wakeups], [], [])
        if wakeups in readable:
            os.read(wakeups, 4096)
            with contextlib.suppress(ChildProcessError):
                while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                    if ended[0] == engine:
                        return ended[1]
        if lifeline in readable and _ended(lifeline):
            return None


def _ended(lifeline: int) -> bool:
    """It breaks instead where the daemon died before it had read our word on the engine."""
    try:
        return not os.read(lifeline, 64)
    except ConnectionError:
        return True


def _kill_rest(engine: int, status: int | None) -> int:
    """Kill whatever is left, also what moved to a group of its own; return the engine's wait status."""
    _send(engine, signal.SIGKILL)
    if status is None:
        status = os.waitpid(engine, 0)[1]
    # The dead hand their children over to us: again until there are none.
    while left := _children():
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        for pid in left:
            os.waitpid(pid, 0)
    return status


def _exit_like(status: int) -> None:
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        os._exit(code)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the engine has dumped core already, if it was to
    if -code != signal.SIGKILL:
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)


def main() -> None:
    lifeline, command = int(sys.argv[1]), sys.argv[2:]
    wakeups, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    # Held back until there is an engine to pass it on to.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    warden = os.getpid()

    def prepare() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != warden:  # killed before that took effect
            os._exit(1)

    try:
        engine = subprocess.Popen(command, process_group=0, preexec_fn=prepare)  # noqa: S603 - the operator's own
    except OSError as error:
        os.write(lifeline, f"!{error.strerror}: {command[0]}".encode())
        os._exit(127)
    signal.signal(signal.SIGTERM, lambda *_: _send(engine.pid, signal.SIGTERM))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    with contextlib.suppress(OSError):  # the daemon may be gone already: the next read tells
        os.write(lifeline, str(engine.pid).encode())
    _exit_like(_kill_rest(engine.pid, _watch(engine.pid, lifeline, wakeups)))


if __name__ == "__main__":
    main()
