"""How a store is: its file, the processes that have leases there, and whether what is recorded can be read."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import attrs

from tinyllm.errors import CheckpointDamaged, CommitsMissing, DatabaseCorrupt, StorageError, StoragePathError
from tinyllm.storage.contract import Owner, Status
from tinyllm.storage.sqlite import owned
from tinyllm.storage.sqlite.commits import acknowledged, refuse_missing
from tinyllm.storage.sqlite.database import FILE_NAME, check_version, connect_reader
from tinyllm.storage.sqlite.faults import translated
from tinyllm.storage.sqlite.library import has_wal_reset_bug, sqlite3
from tinyllm.storage.sqlite.load import Loader
from tinyllm.storage.sqlite.schema import VERSION
from tinyllm.storage.sqlite.store import SQLiteCheckpointStorage

PAGE = 1000
"""Rows that are read at a time, and problems of the file that are told at most."""


@attrs.frozen
class Damaged:
    """A trace that cannot be read as it was written; `what` says where."""

    trace_id: str
    what: str


@attrs.frozen
class Holder:
    """A process with a lease. `alive` is None where that cannot be judged from here; `traces` says how many it has."""

    owner: Owner
    alive: bool | None
    traces: int


@attrs.frozen(kw_only=True)
class Health:
    path: str
    sqlite: str
    wal_reset_bug: bool
    """Whether this SQLite can corrupt a database in WAL mode; then a rollback journal is used."""
    journal_mode: str
    schema: int
    database_bytes: int
    wal_bytes: int
    free_bytes: int
    """Of the database, not in use: it goes back to the disk when pruning has time."""
    problems: tuple[str, ...]
    """What is wrong with the file as a whole: what SQLite's own check finds, and whether its end is missing."""
    holders: tuple[Holder, ...]
    traces: dict[Status, int]
    """How many are in each status."""
    damaged: tuple[Damaged, ...]
    set_aside: tuple[Damaged, ...]
    """Those whose work has gone on under their own ids, and which are quarantined."""

    intact: tuple[str, ...]
    """The ids of all traces that can be read."""

    @property
    def sound(self) -> bool:
        return not (self.problems or self.damaged)


def examine(directory: Path) -> Health:
    """Read the store in `directory`, whole, and change nothing.

    :raises StoragePathError: there is none, it cannot be opened, or an older version wrote it.
    :raises DatabaseTooNew: a newer version wrote it.
    """
    path = directory / FILE_NAME
    check_version(path)
    noted = acknowledged(directory)
    with translated(path), closing(connect_reader(path)) as connection:
        connection.execute("BEGIN")  # one view of all that is read
        (journal_mode,) = connection.execute("PRAGMA journal_mode").fetchone()
        (schema,) = connection.execute("PRAGMA user_version").fetchone()
        if schema < VERSION:
            raise StoragePathError(str(path), "an older version wrote it; list its traces once, then ask again")
        (free,) = connection.execute("PRAGMA freelist_count").fetchone()
        (page,) = connection.execute("PRAGMA page_size").fetchone()
        reader = Loader(connection, directory, SQLiteCheckpointStorage(directory))
        statuses: Counter[Status] = Counter()
        intact: list[str] = []
        damaged: list[Damaged] = []
        set_aside: list[Damaged] = []
        for trace_id, status in _traces(reader):
            statuses[status] += 1
            if (what := _damage(reader, trace_id, path)) is None:
                intact.append(trace_id)
            else:
                (set_aside if status == "quarantined" else damaged).append(Damaged(trace_id, what))
        return Health(
            path=str(path),
            sqlite=sqlite3.sqlite_version,
            wal_reset_bug=has_wal_reset_bug(),
            journal_mode=journal_mode,
            schema=schema,
            database_bytes=_size(path),
            wal_bytes=_size(Path(f"{path}-wal")),
            free_bytes=free * page,
            problems=_problems(connection, path, noted),
            holders=tuple(_holders(connection)),
            traces=dict(statuses),
            damaged=tuple(damaged),
            set_aside=tuple(set_aside),
            intact=tuple(intact),
        )


def _traces(reader: Loader) -> Iterator[tuple[str, Status]]:
    offset = 0
    while records := reader.traces("", None, None, PAGE, offset):
        yield from ((record.trace_id, record.status) for record in records)
        offset += len(records)


def _damage(reader: Loader, trace_id: str, path: Path) -> str | None:
    """What is wrong with a trace: with its graph, with one of its kept checkpoints, its history or its steps."""
    try:
        with translated(path):
            reader.definition(trace_id)
            offset = 0
            while checkpoints := reader.checkpoints(trace_id, PAGE, offset):
                for checkpoint in checkpoints:
                    reader.load(trace_id, checkpoint.rev)
                offset += len(checkpoints)
            after = 0
            while messages := reader.messages(trace_id, None, after, PAGE):
                after = messages[-1].seq
            reader.commands(None, reader.found(trace_id).trace)
            ended = 0
            while steps := reader.steps(trace_id, ended, PAGE):
                ended += len(steps)
    except CheckpointDamaged as error:
        return f"{error.what}, step {error.step}" if error.step is not None else error.what
    except DatabaseCorrupt as error:
        return error.detail
    except StorageError as error:
        return str(error)
    return None


def _problems(connection: sqlite3.Connection, path: Path, noted: int) -> tuple[str, ...]:
    found: list[str] = []
    try:
        with translated(path):
            refuse_missing(path.parent, noted, *connection.execute("SELECT number FROM transactions").fetchone())
    except CommitsMissing as error:
        found.append(str(error))
    try:
        with translated(path):
            found += (row[0] for row in connection.execute(f"PRAGMA integrity_check({PAGE})"))
    except DatabaseCorrupt as error:  # the check itself could not go on
        found.append(error.detail)
    return tuple(problem for problem in found if problem != "ok")


def _holders(connection: sqlite3.Connection) -> Iterator[Holder]:
    for lease in owned.leases(connection).values():
        (count,) = connection.execute("SELECT count(*) FROM traces WHERE owner = ?", (lease.id,)).fetchone()
        if lease.owner is not None:
            yield Holder(lease.owner, lease.alive, count)


def _size(path: Path) -> int:
    return os.stat(path).st_size if path.exists() else 0
