"""Journals as earlier versions left them."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

UNSEALED = """
UPDATE tasks SET admitted = substr(admitted, 5), started = substr(started, 5), finished = substr(finished, 5);
UPDATE contents SET content = CAST(substr(content, 1, 4096) || substr(content, 4101) AS BLOB);
UPDATE frames SET data = substr(data, 5);
UPDATE outbox SET artifact = substr(artifact, 5);
UPDATE pools SET changed = substr(changed, 5);
UPDATE catalog SET entry = substr(entry, 5);
ALTER TABLE sessions DROP COLUMN sum;
"""
TABLES_SINCE = {2: "pools", 3: "catalog"}


def take_back(path: Path, version: int) -> None:
    """Turn a store of today into one of schema `version`: no seals, and without the tables that came later."""
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(UNSEALED)
        for since, table in TABLES_SINCE.items():
            if since > version:
                connection.execute(f"DROP TABLE {table}")
        connection.execute(f"PRAGMA user_version = {version}")
        connection.commit()
