"""The digest of a model's file, read once for as long as the file stays the same."""

from __future__ import annotations

import asyncio
import hashlib
import os


class Digests:
    """Reads off the event loop. What was read is kept by path, size and time of change."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int, int], str] = {}

    async def of(self, path: str) -> str:
        """sha256:<64 hex>. Raises OSError."""
        return await asyncio.to_thread(self._of, path)

    def _of(self, path: str) -> str:
        with open(path, "rb") as file:
            found = os.fstat(file.fileno())
            key = (path, found.st_size, found.st_mtime_ns)
            if key not in self._known:
                self._known[key] = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
            return self._known[key]
