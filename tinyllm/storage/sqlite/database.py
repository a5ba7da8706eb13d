"""Opening the database: where it lies, who may read it, what it is set to, and whether it is one of ours."""

from __future__ import annotations

import logging
import os
import threading
import time
from pathlib import Path

from tinyllm.errors import DatabaseTooNew, StoragePathError
from tinyllm.storage.high_water import OWNERS
from tinyllm.storage.sqlite import schema
from tinyllm.storage.sqlite.commits import FILE_NAME as COMMITS
from tinyllm.storage.sqlite.faults import LOCK_TIMEOUT, is_locked, translated
from tinyllm.storage.sqlite.library import has_wal_reset_bug, sqlite3

FILE_NAME = "tinyllm.db"

_log = logging.getLogger("tinyllm.storage")

_FOREIGN = """
SELECT CASE type WHEN 'table' THEN 'the virtual table' ELSE 'the ' || type END, name FROM sqlite_schema
WHERE coalesce(rootpage, 0) = 0
UNION ALL
SELECT 'the computed column', t.name || '.' || c.name FROM sqlite_schema t, pragma_table_xinfo(t.name) c
WHERE t.type = 'table' AND c.hidden
"""
"""What has no pages of its own. Tables and indexes, which an administrator may add, have."""

_PAGE_SIZE = 4096
_CACHE_KIB = 16_000
_READER_CACHE_KIB = 2_000  # each commit of the writer empties it, and filling more of it costs a long read a third
_BUSY_PAUSE = 0.01
_INCREMENTAL = 2

# A file descriptor on the database that this process closes drops every lock it has there (POSIX). So one that creates
# the file must not be open while another thread connects.
_opening = threading.Lock()
_warned = False


def _renew_lock() -> None:
    """In a child that was forked off: a thread of the parent, of which there is none here, may hold it for ever."""
    global _opening
    _opening = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


def open_database(directory: Path) -> sqlite3.Connection:
    """A writing connection to the database in `directory`; both are made if missing, and migrated if old.

    :raises StoragePathError: the directory or the database cannot be made or used.
    :raises DatabaseTooNew: it was written by a newer version; nothing was touched.
    """
    path = directory / FILE_NAME
    with _opening:
        _make_directory(directory)
        _make_file(path)
        check_version(path)
        connection = connect(path)
    try:
        with translated(path):
            _set_up(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def connect(path: Path) -> sqlite3.Connection:
    """A connection for any one thread at a time, without transactions of its own making."""
    with translated(path):
        connection = sqlite3.connect(
            path,
            timeout=LOCK_TIMEOUT,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=512,
            uri=True,  # for what is attached; a path is absolute, and none itself
        )
        try:
            connection.execute("PRAGMA trusted_schema = OFF")
            connection.execute("PRAGMA synchronous = FULL")
            # What is deleted is overwritten where its page is written in any case, which costs nothing that could be
            # measured; whole pages that become free leave the file when pruning has time. ON would write those, too.
            connection.execute("PRAGMA secure_delete = FAST")
            connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
            if hasattr(connection, "setconfig"):  # Python 3.12
                connection.setconfig(sqlite3.SQLITE_DBCONFIG_DEFENSIVE, True)  # type: ignore[attr-defined,unused-ignore]
        except BaseException:
            connection.close()
            raise
    return connection


def connect_writer(path: Path) -> sqlite3.Connection:
    """One more connection that writes to a database that `open_database` has opened."""
    connection = connect(path)
    try:
        with translated(path):
            # Unlike a WAL, no property of the file: by default a rollback journal is deleted, which is not synced: a
            # power cut may bring it back, to undo what was committed.
            connection.execute(f"PRAGMA journal_mode = {_journal_mode()}")
    except BaseException:
        connection.close()
        raise
    return connection


def drop_journal(connection: sqlite3.Connection) -> None:
    """Have the next transaction make a new rollback journal. The one that is there may be cut off for all who read it
    and yet, after a sync that failed, be whole on the disk: written over in part, it would undo a mixture."""
    connection.execute("PRAGMA journal_mode = delete")
    connection.execute("PRAGMA journal_mode = truncate")


def connect_reader(path: Path) -> sqlite3.Connection:
    """A connection that cannot write."""
    connection = connect(path)
    connection.execute("PRAGMA query_only = ON")
    connection.execute(f"PRAGMA cache_size = -{_READER_CACHE_KIB}")
    return connection


def _make_directory(directory: Path) -> None:
    missing = []
    at = directory
    while not os.path.lexists(at):
        missing.append(at)
        at = at.parent
    if not at.is_dir():
        raise StoragePathError(str(directory), f"{at} is not a directory; choose another path")
    for place in reversed(missing):
        try:
            place.mkdir(mode=0o700)
            place.chmod(0o700)  # where the umask took even that away
            _sync(place.parent)  # SQLite sees to what it makes in it; that it is there itself is for us to see to
        except FileExistsError:
            pass  # another process was quicker
        except OSError as error:
            raise StoragePathError(str(directory), f"{place} cannot be made ({error.strerror})") from error


def _sync(directory: Path) -> None:
    file = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _make_file(path: Path) -> None:
    try:
        # SQLite makes its -wal and -shm files with the mode of the database.
        file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    except FileExistsError:
        if not path.is_file():
            raise StoragePathError(str(path), "it is not a file; move it away, or choose another path") from None
    except OSError as error:
        raise StoragePathError(str(path), f"it cannot be made ({error.strerror})") from error
    else:
        os.close(file)
        path.chmod(0o600)


def check_version(path: Path) -> None:
    """Refuse what is not ours to write, by a connection that could not write if it wanted to."""
    wal, journal = Path(f"{path}-wal"), Path(f"{path}-journal")
    for file in (path, wal, journal, Path(f"{path}-shm"), path.parent / OWNERS, path.parent / COMMITS):
        if file.is_symlink():  # it may lead to somebody else's file; and SQLite looks for the others where it leads to
            raise StoragePathError(str(file), "it is a symbolic link; name the directory that the database is in")
    if journal.exists() and journal.stat().st_size:
        return  # a transaction was cut off: nobody can read anything before it is rolled back, as any reader does
    # Where nothing waits in the WAL, all that is asked for stands in the first page, which is written as a whole; and
    # only `immutable` leaves no -wal and -shm behind.
    how = "mode=ro" if wal.exists() and wal.stat().st_size else "immutable=1"
    with translated(path):
        connection = sqlite3.connect(f"{path.as_uri()}?{how}", uri=True, timeout=LOCK_TIMEOUT, isolation_level=None)
        try:
            _refuse(path, connection)
        finally:
            connection.close()


def _refuse(path: Path, connection: sqlite3.Connection) -> None:
    version, application, used = (
        connection.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("user_version", "application_id", "schema_version")
    )
    if used and application != schema.APPLICATION_ID:
        raise StoragePathError(str(path), "it is another program's database; move it away, or choose another path")
    if version > schema.VERSION:
        raise DatabaseTooNew(str(path), str(version), str(schema.VERSION))
    # They are SQL of somebody else's, which our statements would run, for ever if it says so.
    if found := connection.execute(_FOREIGN).fetchone():
        what = f"somebody else added {found[0]} {found[1]!r}; drop it, or choose another path"
        raise StoragePathError(str(path), what)


def _set_up(connection: sqlite3.Connection, path: Path) -> None:
    _refuse(path, connection)  # once more: what was cut off is rolled back now, and nothing of ours is written yet
    # The order matters: WAL, or the first table, fixes what the first two set, and then they are ignored in silence.
    connection.execute(f"PRAGMA page_size = {_PAGE_SIZE}")
    if _vacuum(connection) != _INCREMENTAL:  # to set it takes the write lock, even to what it is: who reads would wait
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
    journal = _journal_mode()
    # Changing the mode asks for an exclusive lock and does not wait for it, whatever the busy time-out.
    deadline = time.monotonic() + LOCK_TIMEOUT
    while True:
        try:
            (found,) = connection.execute(f"PRAGMA journal_mode = {journal}").fetchone()
            break
        except sqlite3.OperationalError as error:
            if not is_locked(error) or time.monotonic() > deadline:
                raise
            time.sleep(_BUSY_PAUSE)
    if found != journal:
        raise StoragePathError(
            str(path), f"its file system cannot do journal mode {journal} (a network share?); choose a local path"
        )
    if _version(connection) < schema.VERSION:
        connection.execute("BEGIN IMMEDIATE")  # of two that start at once, one migrates
        try:
            if _version(connection) < schema.VERSION:
                schema.migrate(connection)
            connection.execute("COMMIT")
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
    if _vacuum(connection) != _INCREMENTAL:
        raise StoragePathError(str(path), "it was created without auto_vacuum; move it away, or choose another path")


def _version(connection: sqlite3.Connection) -> int:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return int(version)


def _vacuum(connection: sqlite3.Connection) -> int:
    (vacuum,) = connection.execute("PRAGMA auto_vacuum").fetchone()
    return int(vacuum)


def _journal_mode() -> str:
    global _warned
    if not has_wal_reset_bug():
        return "wal"
    if not _warned:
        _warned = True
        _log.warning(
            "SQLite %s can corrupt a database in WAL mode; using a rollback journal, which commits more slowly. "
            "Install pysqlite3 to have a newer one",
            sqlite3.sqlite_version,
        )
    return "truncate"
