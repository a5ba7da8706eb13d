"""The one place where an error of SQLite becomes one of ours."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tinyllm.errors import DatabaseCorrupt, DatabaseLocked, StorageError, StoragePathError, StorageUnavailable
from tinyllm.storage.sqlite.library import sqlite3
from tinyllm.storage.sqlite.sense import Nonsense

LOCK_TIMEOUT = 10.0
"""Seconds to wait for another process's transaction: one is over in milliseconds unless its process is stopped."""

_WAL_WRITE_LOCK = 120
"""The byte of the -shm file that a writer locks (SQLite's file format, "WAL-index locking")."""
_RESERVED_BYTE = 0x40000001
"""The byte of the database that a writer locks where there is no WAL."""

# Primary result codes, by SQLite's numbers.
_READONLY, _IOERR, _CORRUPT, _FULL, _CANTOPEN, _PROTOCOL, _NOTADB = 8, 10, 11, 13, 14, 15, 26
_LOCKED = frozenset({5, 6, _PROTOCOL})
_MAY_PASS = frozenset({_READONLY, _IOERR, _FULL, _CANTOPEN})

_REMEDIES = {
    _READONLY: "the database is read-only; make the file and its directory writable, or choose another path",
    _IOERR: "the disk failed ({detail}); check it and its file system, then resume",
    _FULL: "the disk is full; free some space, then resume",
    _CANTOPEN: "it cannot be opened; make the file and its directory readable and writable, or choose another path",
    _NOTADB: "it is not an SQLite database; move it away, or choose another path",
}


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Raise SQLite's errors as ours, about the database `path`; and that it holds what nobody wrote there."""
    try:
        yield
    except sqlite3.Error as error:
        raise translate(error, path) from error
    except UnicodeDecodeError as error:  # SQLite quotes what it found, and that is no text
        raise DatabaseCorrupt(str(path), "its schema cannot be read") from error
    except Nonsense as error:
        raise DatabaseCorrupt(str(path), str(error)) from error


def translate(error: sqlite3.Error, path: Path) -> StorageError:
    code = getattr(error, "sqlite_errorcode", 1) & 0xFF  # the rest tells variants of it apart
    if code in _LOCKED:
        return DatabaseLocked(str(path), LOCK_TIMEOUT, lock_holder(path))
    if code == _CORRUPT:
        return DatabaseCorrupt(str(path), str(error))
    if code in _REMEDIES:
        kind = StorageUnavailable if code in _MAY_PASS else StoragePathError
        return kind(str(path), _REMEDIES[code].format(detail=error))
    return StorageError(f"{path}: {error}")


def is_locked(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorcode", 1) & 0xFF in _LOCKED


def lock_holder(path: Path) -> int | None:
    """The process that holds the write lock of the database `path`, where /proc/locks tells."""
    places = {}
    for name, byte in ((f"{path}-shm", _WAL_WRITE_LOCK), (str(path), _RESERVED_BYTE)):
        try:
            status = os.stat(name)
        except OSError:
            continue
        device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}"
        places[f"{device}:{status.st_ino}"] = byte
    try:
        lines = Path("/proc/locks").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    for line in lines:
        # `1: POSIX  ADVISORY  WRITE 4711 fe:00:1234 120 120`; one that waits has an arrow: `1: -> POSIX ...`.
        fields = line.split()
        if len(fields) != 8 or fields[3] != "WRITE" or fields[5] not in places:
            continue
        end = float("inf") if fields[7] == "EOF" else int(fields[7])
        if int(fields[6]) <= places[fields[5]] <= end and int(fields[4]) > 0:
            return int(fields[4])
    return None
