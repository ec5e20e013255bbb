"""What an operator is told when the journal's files fail."""

from __future__ import annotations

import errno
import os
import sqlite3
from pathlib import Path

import pytest

from orchestratord.infra.journal.database import Database
from orchestratord.infra.journal.remedy import named, remedy
from orchestratord.ports import JournalUnavailable


def sqlite_error(name: str) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("its text")
    error.sqlite_errorname = name
    return error


@pytest.mark.parametrize(
    ("error", "name", "advice"),
    [
        (OSError(errno.ENOSPC, "x"), "ENOSPC", "Make room"),
        (OSError(errno.EDQUOT, "x"), "EDQUOT", "Make room"),
        (sqlite_error("SQLITE_FULL"), "SQLITE_FULL", "Make room"),
        (OSError(errno.EIO, "x"), "EIO", "system's log"),
        (sqlite_error("SQLITE_IOERR_WRITE"), "SQLITE_IOERR_WRITE", "system's log"),
        (OSError(errno.EMFILE, "x"), "EMFILE", "ulimit -n"),
        (OSError(errno.EROFS, "x"), "EROFS", "Mount it"),
        (PermissionError(errno.EACCES, "x"), "EACCES", f"Let user {os.getuid()} write to /data"),
        (PermissionError(errno.EPERM, "x"), "EPERM", f"Let user {os.getuid()} write to /data"),
        (sqlite_error("SQLITE_READONLY_DIRECTORY"), "SQLITE_READONLY_DIRECTORY", "Let user"),
        (sqlite_error("SQLITE_CANTOPEN"), "SQLITE_CANTOPEN", "Let user"),
        (OSError("no number"), "OSError", "See what is wrong with /data"),
        (ValueError("a prompt, perhaps"), "ValueError", "See what is wrong with /data"),
    ],
    ids=lambda value: value if isinstance(value, str) and value.isupper() else "",
)
def test_every_failure_has_a_name_and_a_remedy(error: Exception, name: str, advice: str) -> None:
    """And neither quotes the exception, which could quote what it met."""
    assert named(error) == name
    told = remedy(error, Path("/data"))
    assert advice in told
    assert not told.endswith(".")
    assert str(error) not in told


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (OSError(errno.EROFS, "Read-only file system"), "Read-only file system. Mount it for writing"),
        (sqlite_error("SQLITE_FULL"), "its text. Make room"),
        (sqlite3.DatabaseError("malformed"), "malformed. Put back a copy"),
    ],
)
def test_a_journal_that_does_not_open_says_what_to_do(tmp_path: Path, error: Exception, advice: str) -> None:
    """OD-26: what failed, why, and the remedy."""

    class Broken(Database):
        def _connect(self) -> None:
            raise error

    with pytest.raises(JournalUnavailable, match=advice):
        Broken(tmp_path / "j.db", "process", lambda _: None, lambda _: None).open()
