"""Copying what can be read of a damaged store into a new one."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

import attrs

from tinyllm.errors import StorageError, StoragePathError
from tinyllm.storage.sqlite.database import FILE_NAME, open_database
from tinyllm.storage.sqlite.faults import translated
from tinyllm.storage.sqlite.library import sqlite3
from tinyllm.storage.sqlite.schema import LAST, SHIFT, VERSION
from tinyllm.storage.sqlite.seals import note, seal_trace

_BY_RANGE = ("messages", "activations", "arrivals", "variables", "steps", "checkpoints")
"""Tables whose row ids begin with the trace's key."""

_THERE = "SELECT 1 FROM main.traces WHERE key = ?"
_PARENT = "SELECT parent FROM old.traces WHERE key = ?"
_PINNED = f"""
SELECT id, pins, (SELECT count(*) FROM traces f WHERE f.parent << {SHIFT} | f.parent_rev = checkpoints.id)
FROM checkpoints WHERE pins
"""


@attrs.frozen
class Salvaged:
    copied: tuple[str, ...]
    left: dict[str, str]
    """By trace that could not be copied, why."""


def salvage(directory: Path, traces: Iterable[str], target: Path) -> Salvaged:
    """Copy `traces` of the store in `directory`, with all that they share with those they were forked from, to a new
    store in `target`. What was being executed is interrupted there. The old store is only read.

    :raises StoragePathError: there is a store in `target` already, or it cannot be made; or the old one was written by
        an older version, and must be opened by this one first.
    """
    source = directory / FILE_NAME
    if (target / FILE_NAME).exists():
        raise StoragePathError(str(target), "there is a store already; name a directory without one")
    copied: list[str] = []
    left: dict[str, str] = {}
    traces = list(traces)
    if not traces:  # an empty store would only be in the way of the next try
        return Salvaged((), {})
    with closing(open_database(target)) as connection:
        with translated(source):
            connection.execute("ATTACH ? AS old", (f"{source.as_uri()}?mode=ro",))
            (version,) = connection.execute("PRAGMA old.user_version").fetchone()
        if version != VERSION:
            raise StoragePathError(str(source), "an older version wrote it; list its traces once, then salvage it")
        for trace_id in traces:
            connection.execute("BEGIN IMMEDIATE")
            try:
                with translated(source):
                    _copy(connection, trace_id)
                    connection.execute("COMMIT")
                copied.append(trace_id)
            except StorageError as error:
                connection.execute("ROLLBACK")
                left[trace_id] = str(error)
        for checkpoint, pins, forks in connection.execute(_PINNED).fetchall():  # one that was left behind needs nothing
            note(connection, checkpoint, pins=forks - pins)
    return Salvaged(tuple(copied), left)


def _copy(connection: sqlite3.Connection, trace_id: str) -> None:
    (key,) = connection.execute("SELECT key FROM old.traces WHERE trace_id = ?", (trace_id,)).fetchone()
    if connection.execute(_THERE, (key,)).fetchone() is None:
        _copy_rows(connection, key)
    # A fork of it may have been copied before, and then it stands there as if it had been deleted.
    _name(connection, key, trace_id)
    while (key := connection.execute(_PARENT, (key,)).fetchone()[0]) is not None:
        if connection.execute(_THERE, (key,)).fetchone() is None:
            _copy_rows(connection, key)
            _name(connection, key, None)


def _name(connection: sqlite3.Connection, key: int, trace_id: str | None) -> None:
    connection.execute("UPDATE main.traces SET trace_id = ? WHERE key = ?", (trace_id, key))
    seal_trace(connection, key)


def _copy_rows(connection: sqlite3.Connection, key: int) -> None:
    connection.execute("INSERT INTO main.traces SELECT * FROM old.traces WHERE key = ?", (key,))
    connection.execute("UPDATE main.traces SET owner = NULL WHERE key = ?", (key,))
    connection.execute(
        "INSERT OR IGNORE INTO main.graphs SELECT * FROM old.graphs"
        " WHERE digest = (SELECT graph FROM old.traces WHERE key = ?)",
        (key,),
    )
    for table in _BY_RANGE:
        span = (key << SHIFT, key << SHIFT | LAST)
        connection.execute(f"INSERT INTO main.{table} SELECT * FROM old.{table} WHERE id BETWEEN ? AND ?", span)
    connection.execute("INSERT INTO main.commands SELECT * FROM old.commands WHERE trace = ?", (key,))
