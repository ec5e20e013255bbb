"""Journals: in memory (tests, throw-away daemons) and SQLite (the default)."""
