"""Which SQLite is used, chosen once: two libraries in one process would drop each other's locks on the same file."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import sqlite3
else:
    try:
        # sqlite-utils makes the same choice, so that its connections and ours are of one kind.
        from pysqlite3 import dbapi2 as sqlite3
    except ImportError:
        import sqlite3

__all__ = ["has_wal_reset_bug", "sqlite3"]


def has_wal_reset_bug(version: tuple[int, ...] = sqlite3.sqlite_version_info) -> bool:
    """Whether two writers that reset the WAL at the same moment can corrupt the database (3.7.0 to 3.51.2)."""
    if version[:2] == (3, 44):
        return version < (3, 44, 6)
    if version[:2] == (3, 50):
        return version < (3, 50, 7)
    return (3, 7, 0) <= version < (3, 51, 3)
