"""What the system calls a failure of the journal's files, and what an operator does about it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

_SPACE = "Make room on its disk, or set data_dir to another"
_SICK = "Its disk reports errors: look at the system's log, and set data_dir to a sound one"
_WRITES = "Its disk reports errors or a quota is used up: look at the system's log, or set data_dir to another place"
_HANDLES = "Raise the limit of open files: ulimit -n, or LimitNOFILE in the systemd unit"
_SEALED = "Mount it for writing, or set data_dir to another place"

_BY_ERRNO = {
    errno.ENOSPC: _SPACE,
    errno.EDQUOT: _SPACE,
    errno.EFBIG: _SPACE,
    errno.EIO: _SICK,
    errno.EMFILE: _HANDLES,
    errno.ENFILE: _HANDLES,
    errno.EROFS: _SEALED,
}
_BY_SQLITE = {"SQLITE_FULL": _SPACE, "SQLITE_IOERR": _WRITES, "SQLITE_READONLY": "", "SQLITE_CANTOPEN": ""}


def named(error: BaseException) -> str:
    """ENOSPC, SQLITE_FULL and the like; else the kind of exception. Never its text, which could quote what it met."""
    if isinstance(error, OSError) and error.errno is not None:
        return errno.errorcode.get(error.errno, str(error.errno))
    return getattr(error, "sqlite_errorname", None) or type(error).__name__


def remedy(error: BaseException, folder: Path) -> str:
    """One sentence without its full stop."""
    if isinstance(error, OSError) and error.errno in _BY_ERRNO:
        return _BY_ERRNO[error.errno]
    name = named(error)
    known = next((text for prefix, text in _BY_SQLITE.items() if name.startswith(prefix)), None)
    if isinstance(error, PermissionError | FileNotFoundError) or known == "":
        return f"Let user {os.getuid()} write to {folder}, or set data_dir to another place"
    if known is not None:
        return known
    return f"See what is wrong with {folder}, or set data_dir to another place"
