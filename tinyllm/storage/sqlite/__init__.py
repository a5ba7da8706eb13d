"""The SQLite backend: one database file in a directory."""

from tinyllm.storage.sqlite.store import SQLiteCheckpointStorage

__all__ = ["SQLiteCheckpointStorage"]
