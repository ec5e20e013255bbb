"""Opening what should be a file. A pipe or a device in its place is refused and never waited for: who waits in a thread
keeps it for good, and there are few."""

from __future__ import annotations

import os
import stat
from io import FileIO

from orchestratord.ports import ModelUnavailable


def open_regular(path: str) -> FileIO:
    """For reading, without a buffer. Raises ModelUnavailable for what is no file, and OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ModelUnavailable("UNTRUSTED_ARTIFACT", f"{path} is not a file.")
    return FileIO(descriptor)
