"""Forgetting: what no kept checkpoint needs goes, in slices that do not hold the others up.

Between two kept neighbours `older` and `newer`, nobody needs an activation that was born after `older` and had ended by
`newer`, nor a variable's rows above those that `older` sees and below those that `newer` sees. Nothing else has to be
looked for: the steps of the interval tell what ended in it. Nor have they to be looked for between `older` and the
first checkpoint that goes, `start`: a delta that plans and ends the same is not written, and if there were others
between, what they left was dropped with them, when `start` was the newer one.

Of a history with a window, no kept window holds what came after `older` and before the window of `newer`; an index has
just those that some window held until now. One of them that a kept activation reads stays for that reader.
"""

from __future__ import annotations

import time
from itertools import takewhile
from operator import attrgetter
from typing import Any

import attrs

from tinyllm.errors import CheckpointInUse
from tinyllm.storage.contract import Marks
from tinyllm.storage.in_use import in_use
from tinyllm.storage.sqlite.commands import FORGET_ANSWERS
from tinyllm.storage.sqlite.library import sqlite3
from tinyllm.storage.sqlite.schema import LAST, SHIFT
from tinyllm.storage.sqlite.seals import CHECKPOINT, checkpoint_seal, note, notes_seal, seal_trace

_SLICE_SECONDS = 0.02
"""How long one transaction goes on dropping what a deleted trace left; bodies are of any size, so rows say little."""
_SLICE_ROWS = 100
_SLICE_CHECKPOINTS = 64

_COLUMNS = f"label, task, pins, crc, notes_crc, {CHECKPOINT}"
_NEWEST_KEPT = "SELECT id FROM checkpoints WHERE id BETWEEN ? AND ? ORDER BY id DESC LIMIT 1 OFFSET ?"
_FIRST = "SELECT id FROM checkpoints WHERE id BETWEEN ? AND ? ORDER BY id LIMIT 1"
_DROPPABLE = f"""
SELECT {_COLUMNS} FROM checkpoints
WHERE id > ? AND id < ? AND pins = 0 AND (label IS NULL OR ?) ORDER BY id LIMIT ?
"""
_OLDER = f"SELECT {_COLUMNS} FROM checkpoints WHERE id >= ? AND id < ? ORDER BY id DESC LIMIT 1"
_BETWEEN = "SELECT count(*) FROM checkpoints WHERE id BETWEEN ? AND ?"
_NEWER = f"SELECT {_COLUMNS} FROM checkpoints WHERE id > ? AND id <= ? ORDER BY id LIMIT 1"
_PINNED = f"""
SELECT {_COLUMNS} FROM checkpoints WHERE id BETWEEN ? AND ? AND (pins > 0 OR notes_crc IS NOT NULL) ORDER BY id DESC
"""
_DROP = "DELETE FROM checkpoints WHERE id BETWEEN ? AND ?"
_PINS = """
SELECT pins FROM checkpoints WHERE id = ? AND EXISTS (SELECT 1 FROM traces WHERE key = ? AND trace_id IS NOT NULL)
"""

_KEYS = "SELECT DISTINCT key FROM variables WHERE id > ? AND id <= ?"
_SEEN = "SELECT base FROM variables WHERE trace = ? AND key = ? AND id <= ? ORDER BY id DESC LIMIT 1"
_SUPERSEDED = "DELETE FROM variables WHERE trace = ? AND key = ? AND id > ? AND id < ?"

# `loose`: whether the message that it reads is one that goes with its last reader, and not of a history that is kept.
_ENDED = """
SELECT a.id, a.message, coalesce(a.fired_hash, a.hash), ?6 IS NOT NULL OR m.history IS NULL AS loose
FROM steps s CROSS JOIN activations a ON a.id = ?1 | s.activation LEFT JOIN messages m ON m.id = ?1 | a.message
WHERE s.id > ?2 AND s.id <= ?3 AND a.id > ?4 AND a.done_rev <= ?5
"""
_DROP_ENDED = """
DELETE FROM activations
WHERE id IN (SELECT ?1 | activation FROM steps WHERE id > ?2 AND id <= ?3) AND id > ?4 AND done_rev <= ?5
"""
_ARRIVED = "SELECT message FROM arrivals WHERE activation = ?"
_ANY_COMMAND = "SELECT EXISTS (SELECT 1 FROM commands WHERE trace = ?)"
_DROP_ARRIVALS = "DELETE FROM arrivals WHERE activation = ?"
_READ_NO_MORE = "UPDATE messages SET pruned = pruned + 1 WHERE id = ?"
_DROP_MESSAGE = """
DELETE FROM messages WHERE id = ? AND pruned >= consumers AND held IS NULL AND (history IS NULL OR ? IS NOT NULL)
"""
_DROP_LET_GO = "DELETE FROM messages WHERE held > ? AND held <= ? AND pruned >= consumers"
_LET_GO = "UPDATE messages SET held = NULL WHERE held > ? AND held <= ?"

_TRACE = """
SELECT history, coalesce(parent_step, 0), low_message, low_activation, low_arrival, low_variable
FROM traces WHERE key = ?
"""
_HIDE = """
UPDATE traces SET trace_id = NULL, owner = NULL, epoch = epoch + 1 WHERE key = ? AND trace_id IS NOT NULL
"""
_DELETED = "SELECT key FROM traces WHERE trace_id IS NULL"
_ANY_DELETED = f"{_DELETED} LIMIT 1"
_PARENT = "SELECT parent, parent_rev, graph FROM traces WHERE key = ?"
_FORGET_COMMANDS = f"""
DELETE FROM commands WHERE id IN (SELECT id FROM commands WHERE trace = ? LIMIT {_SLICE_ROWS})
"""
_FORGET = "DELETE FROM traces WHERE key = ?"
_DROP_GRAPH = "DELETE FROM graphs WHERE digest = ?1 AND NOT EXISTS (SELECT 1 FROM traces WHERE graph = ?1)"


@attrs.frozen
class _Point:
    """A checkpoint, or the emptiness before the first."""

    id: int
    step: int
    messages: int
    """Of the history, since its beginning."""
    marks: Marks
    task: str | None = None
    pins: int = 0
    whole: bool = True
    """It says what was written; what a damaged one says is not acted upon."""


def prune(connection: sqlite3.Connection, trace: int, keep: int, limit: int) -> int:
    """Drop at most `limit` checkpoints of `trace` older than its newest `keep`; returns how many."""
    first, last = trace << SHIFT, trace << SHIFT | LAST
    # The newest is the trace's present state: it stays, whatever was asked.
    end = connection.execute(_NEWEST_KEPT, (first, last, max(keep, 1) - 1)).fetchone()
    start = connection.execute(_FIRST, (first, last)).fetchone()
    if end is None or start is None:
        return 0
    return _drop(connection, trace, start[0], end[0], False, limit)


def drop(connection: sqlite3.Connection, trace: int, trace_id: str, checkpoint: int) -> int | CheckpointInUse:
    """Drop the checkpoint of the row id `checkpoint`, if it is there; returns how many went, or why it stays."""
    pins = connection.execute(_PINS, (checkpoint, trace)).fetchone()
    if pins is None:
        return 0
    first, last = trace << SHIFT, trace << SHIFT | LAST
    refused = in_use(
        trace_id,
        checkpoint & LAST,
        newest=connection.execute(_NEWEST_KEPT, (first, last, 0)).fetchone() == (checkpoint,),
        first=connection.execute(_FIRST, (first, last)).fetchone() == (checkpoint,),
        forks=pins[0],
    )
    return refused or _drop(connection, trace, checkpoint - 1, checkpoint + 1, True, 1)


def delete(connection: sqlite3.Connection, trace: int) -> None:
    """Make `trace` invisible, and drop a first slice of what deleted traces left; `purge` drops the rest."""
    if connection.execute(_HIDE, (trace,)).rowcount:
        seal_trace(connection, trace)
        purge(connection)


def buried(connection: sqlite3.Connection) -> bool:
    """Whether there is a deleted trace of which something is left."""
    return connection.execute(_ANY_DELETED).fetchone() is not None


def purge(connection: sqlite3.Connection) -> bool:
    """Drop a slice of what deleted traces left; returns whether there may be more."""
    deadline = time.monotonic() + _SLICE_SECONDS
    # Again and again, because the last fork of a trace frees more of it.
    while any(_purge(connection, trace, deadline) for (trace,) in connection.execute(_DELETED).fetchall()):
        if time.monotonic() > deadline:
            return True
    return False


def drop_graph(connection: sqlite3.Connection, digest: bytes) -> None:
    """Drop a definition if no trace has it."""
    connection.execute(_DROP_GRAPH, (digest,))


def _purge(connection: sqlite3.Connection, trace: int, deadline: float) -> bool:
    """Drop what no fork needs of a deleted trace, until the deadline; returns whether anything was dropped."""
    _, origin = _trace(connection, trace)
    last = trace << SHIFT | LAST
    noted = map(_point, connection.execute(_PINNED, (trace << SHIFT, last)).fetchall())
    # One that is damaged may be pinned.
    pinned = next((point for point in noted if point.pins or not point.whole), None)
    end = pinned or origin
    # What came after the newest checkpoint that a fork shares is read by nobody, and reads nothing of before.
    dropped = 0
    while rows := connection.execute(_FORGET_COMMANDS, (trace,)).rowcount:
        dropped += rows
        if time.monotonic() > deadline:
            return True
    if not end.whole:
        return dropped > 0
    for table, number in (
        ("checkpoints", end.id & LAST if pinned else -1),
        ("activations", end.marks.activation),
        ("arrivals", end.marks.arrival),
        ("messages", end.marks.message),
        ("variables", end.marks.variable),
        ("steps", end.step),
    ):
        tail = f"DELETE FROM {table} WHERE id IN (SELECT id FROM {table} WHERE id BETWEEN ? AND ? LIMIT {_SLICE_ROWS})"
        while rows := connection.execute(tail, ((trace << SHIFT) + number + 1, last)).rowcount:
            dropped += rows
            if time.monotonic() > deadline:
                return True
    if pinned:
        dropped += _drop(connection, trace, origin.id, end.id, True, _SLICE_CHECKPOINTS)
        return dropped > 0
    parent, parent_rev, graph = connection.execute(_PARENT, (trace,)).fetchone()
    connection.execute(_FORGET, (trace,))
    drop_graph(connection, graph)
    if parent is not None:
        note(connection, parent << SHIFT | parent_rev, pins=-1)
    return True


def _drop(connection: sqlite3.Connection, trace: int, after: int, before: int, labelled: bool, limit: int) -> int:
    """Drop at most `limit` unpinned checkpoints between the row ids `after` and `before`; a newer one stays."""
    window, origin = _trace(connection, trace)
    found = map(_point, connection.execute(_DROPPABLE, (after, before, labelled, limit)).fetchall())
    points = list(takewhile(attrgetter("whole"), found))
    ids = [point.id for point in points]
    at = 0
    while at < len(points):
        run = points[at : _neighbours(connection, ids, at)]
        start, end = run[0], run[-1]
        task = next((point.task for point in reversed(run) if point.task is not None), None)
        newer = _point(connection.execute(_NEWER, (end.id, end.id | LAST)).fetchone())
        before_it = connection.execute(_OLDER, (trace << SHIFT, start.id)).fetchone()
        older = _point(before_it) if before_it else origin
        if not (older.whole and newer.whole):
            return at
        connection.execute(_DROP, (start.id, end.id))
        if task is not None and newer.task is None:
            note(connection, newer.id, task=task)
        if window is not None:
            _forget_history(connection, trace, older, newer, window)
        _forget_variables(connection, trace, older, start, newer)
        _forget_activations(connection, trace, older, start, newer, window)
        at += len(run)
    return len(points)


def _neighbours(connection: sqlite3.Connection, ids: list[int], at: int) -> int:
    """The end of the run of neighbours that begins at `at`: it is dropped as one interval."""
    end = len(ids)
    while (there := connection.execute(_BETWEEN, (ids[at], ids[end - 1])).fetchone()[0]) != end - at:
        end = max(at + 1, end - max(1, (there - (end - at)) // 2))  # a single one has no others between
    return end


def _forget_history(connection: sqlite3.Connection, trace: int, older: _Point, newer: _Point, window: int) -> None:
    first = trace << SHIFT
    left = (first | older.messages, first | max(newer.messages - window, 0))
    connection.execute(_DROP_LET_GO, left)
    connection.execute(_LET_GO, left)


def _forget_variables(connection: sqlite3.Connection, trace: int, older: _Point, start: _Point, newer: _Point) -> None:
    first = trace << SHIFT
    upto = first | newer.marks.variable
    keys = connection.execute(_KEYS, (first | start.marks.variable, upto)).fetchall()
    for (key,) in keys:
        (base,) = connection.execute(_SEEN, (trace, key, upto)).fetchone()
        connection.execute(_SUPERSEDED, (trace, key, first | older.marks.variable, first | base))


def _forget_activations(
    connection: sqlite3.Connection, trace: int, older: _Point, start: _Point, newer: _Point, window: int | None
) -> None:
    first = trace << SHIFT
    interval = (first, first | start.step, first | newer.step, first | older.marks.activation, newer.id & LAST)
    found = connection.execute(_ENDED, (*interval, window)).fetchall()
    read: list[int] = []
    for activation, message, _, loose in found:
        if message is None:
            read += [seq for (seq,) in connection.execute(_ARRIVED, (activation,)) if seq is not None]
        elif loose:
            read.append(message)
    rounds = [(activation,) for activation, message, _, _ in found if message is None]
    connection.execute(_DROP_ENDED, interval)
    if connection.execute(_ANY_COMMAND, (trace,)).fetchone()[0]:
        connection.executemany(FORGET_ANSWERS, [(trace, identity) for _, _, identity, _ in found])
    connection.executemany(_DROP_ARRIVALS, rounds)
    # A fork's rows also read messages of its parent, which are the parent's to drop: the fork has none of that number.
    messages = [(first | message,) for message in read]
    connection.executemany(_READ_NO_MORE, messages)
    connection.executemany(_DROP_MESSAGE, [(message, window) for (message,) in messages])


def _trace(connection: sqlite3.Connection, trace: int) -> tuple[int | None, _Point]:
    """The window of its history, and the emptiness before its first checkpoint."""
    window, step, *marks = connection.execute(_TRACE, (trace,)).fetchone()
    return window, _Point((trace << SHIFT) - 1, step, 0, Marks(*marks))


def _point(row: tuple[Any, ...]) -> _Point:
    label, task, pins, crc, notes_crc, *sealed = row
    id_, _, step, _, _, message, activation, arrival, variable, messages, *_ = sealed
    whole = checkpoint_seal(*sealed) == crc and notes_seal(id_, label, task, pins) == notes_crc
    return _Point(id_, step, messages, Marks(message, activation, arrival, variable), task, pins, whole)
