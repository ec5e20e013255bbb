"""Files with secrets that others on this machine can read."""

from __future__ import annotations

import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from orchestratord.config import Settings, written_secrets


class Exposed(NamedTuple):
    path: Path
    seen: str
    fix: str


def exposed(settings: Settings, file: Path | None, environ: Mapping[str, str]) -> Iterator[Exposed]:
    """The token's file, and the configuration where it holds secrets itself, if group or others may read them."""
    holders = [Path(environ["AUTH_TOKEN_FILE"])] if environ.get("AUTH_TOKEN_FILE") else []
    if file is not None and written_secrets(settings):
        holders.append(file)
    for path in holders:
        if _readable(path, environ.get("CREDENTIALS_DIRECTORY")):
            yield Exposed(path, f"others on this machine can read {path}, which holds a secret", f"chmod 600 {path}")


def _readable(path: Path, credentials: str | None) -> bool:
    if credentials and path.is_relative_to(credentials):
        return False  # systemd's own: what looks like the group's rights is the mask of an access list for one user
    mode = path.stat().st_mode
    return stat.S_ISREG(mode) and bool(mode & (stat.S_IRGRP | stat.S_IROTH))
