"""What the HTTP layer takes of one client, and of all of them. Capabilities tell it, the server keeps it."""

from __future__ import annotations

import resource

URL_BYTES = 8 * 1024
HEAD_BYTES = 16 * 1024
HEAD_FIELDS = 100
CONNECTIONS = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2  # the rest is for files and engines
