"""The queue: which traces wait to be executed, who takes them, and what becomes of those whose owner died.

Nothing here reads more of the traces that wait than it takes: those that may be claimed stand in one index in the order
in which they go, and those that may not yet stand in another until their time has come.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from tinyllm.errors import OwnershipLost
from tinyllm.storage.contract import Acquit, Backlog, Claim, Claimed, Demand, Disown, Done, Held, Owned, Status
from tinyllm.storage.framing import Frame, FrameDamaged, decode
from tinyllm.storage.sqlite.commands import OUTLIVED
from tinyllm.storage.sqlite.library import sqlite3
from tinyllm.storage.sqlite.rows import frame
from tinyllm.storage.sqlite.seals import deaths_seal, error_seal
from tinyllm.storage.sqlite.sense import legible

_MOST = 1000
"""Traces of a graph whose time has come that one claim puts with those that are ready. Of more, those whose time came
last wait for the next claim, even if their priority is higher."""

_WAITS = "owner IS NULL AND {due} AND status IN ('queued', 'running') AND trace_id IS NOT NULL"
_READY = f"FROM traces INDEXED BY traces_ready WHERE {_WAITS.format(due='due IS NULL')} AND graph_id = ?"
_LATER = f"FROM traces INDEXED BY traces_later WHERE {_WAITS.format(due='due IS NOT NULL')} AND graph_id = ?"

_RIPEN = f"""
UPDATE traces SET due = NULL, updated_at = max(updated_at, due)
WHERE key IN (SELECT key {_LATER} AND apart = ? AND due <= ? ORDER BY due LIMIT {_MOST})
"""
# A priority that is none, in a row that was damaged, is no reason to claim no other.
_FIRST = f"SELECT key, CAST(priority AS INTEGER) {_READY} AND apart = ? ORDER BY priority DESC, key LIMIT ?"
# Nor is an id that is no text: who would execute that trace finds that it is not there.
_TAKE = """
UPDATE traces SET owner = ?, epoch = epoch + 1, died = NULL, updated_at = ? WHERE key = ?
RETURNING CAST(trace_id AS BLOB), epoch
"""
_OWNED = "SELECT count(*) FROM traces INDEXED BY traces_owner WHERE owner IS NOT NULL AND graph_id = ?"
_DISOWN = """
UPDATE traces SET owner = NULL, died = owner, epoch = epoch + 1, updated_at = ?, deaths = ?, deaths_crc = ?, apart = ?
WHERE key = ? AND epoch = ? AND owner = ? AND trace_id IS NOT NULL
"""
_QUARANTINE = """
UPDATE traces SET status = 'quarantined', due = NULL, error = ?, error_crc = ?
WHERE key = ? AND status IN ('queued', 'running')
"""
_ACQUIT = """
UPDATE traces SET deaths = NULL, deaths_crc = NULL, apart = 0 WHERE key = ? AND epoch = ? AND trace_id IS NOT NULL
"""
# Whatever a damaged row has in place of these: it must not keep what its owner had from being taken away from it.
_HELD = """
SELECT key, CAST(trace_id AS TEXT), CAST(graph_id AS TEXT), CAST(epoch AS INTEGER), CAST(status AS TEXT),
       CAST(step AS INTEGER), deaths, deaths_crc
FROM traces INDEXED BY traces_owner WHERE owner = ? AND trace_id IS NOT NULL ORDER BY key
"""
_STATUSES = frozenset(get_args(Status))

_ANY_READY = f"SELECT EXISTS (SELECT 1 {_READY} AND apart = ?)"
# (Numbers stand before whatever else a damaged row may have in their place.)
_SINCE = "min(CASE WHEN typeof(updated_at) IN ('real', 'integer') THEN max(updated_at, coalesce(due, 0)) END)"
_NEXT = f"SELECT due {_LATER} AND apart = ? AND typeof(due) IN ('real', 'integer') ORDER BY due LIMIT 1"
_COUNT_READY = f"SELECT apart, count(*), {_SINCE} {_READY} GROUP BY apart"
_COUNT_LATER = f"SELECT apart, due <= ?, count(*), {_SINCE} {_LATER} GROUP BY 1, 2"
_QUARANTINED = """
SELECT count(*) FROM traces INDEXED BY traces_quarantined
WHERE owner IS NULL AND status = 'quarantined' AND trace_id IS NOT NULL AND graph_id = ?
"""
_DEMAND = f"""
WITH found (graph_id, waiting, newest) AS (
    SELECT graph_id, count(*), max(key) FROM traces INDEXED BY traces_ready
    WHERE {_WAITS.format(due="due IS NULL")} GROUP BY graph_id
    UNION ALL
    SELECT graph_id, count(*), max(key) FROM traces INDEXED BY traces_later
    WHERE {_WAITS.format(due="due IS NOT NULL")} GROUP BY graph_id
    UNION ALL
    SELECT graph_id, 0, max(key) FROM traces INDEXED BY traces_owner
    WHERE owner IS NOT NULL AND trace_id IS NOT NULL GROUP BY graph_id
    UNION ALL
    SELECT graph_id, 0, max(key) FROM traces INDEXED BY traces_quarantined
    WHERE owner IS NULL AND status = 'quarantined' AND trace_id IS NOT NULL GROUP BY graph_id
)
SELECT CAST(f.graph_id AS TEXT), CAST(t.graph_path AS TEXT), f.waiting
FROM (SELECT graph_id, sum(waiting) AS waiting, max(newest) AS newest FROM found GROUP BY graph_id) f
JOIN traces t ON t.key = f.newest ORDER BY f.graph_id
"""


def claim(connection: sqlite3.Connection, write: Claim, now: float) -> Claimed:
    """Give the traces that are next their owners."""
    wanted = {each.graph_id: each for each in write.wanted}
    first: list[tuple[int, int, str]] = []
    for graph_id, each in wanted.items():
        room = write.limit
        if each.at_most is not None:
            (running,) = connection.execute(_OWNED, (graph_id,)).fetchone()
            reserved = not write.apart and next_due(connection, (graph_id,), True, now) == 0
            room = each.room(room, running, reserved)
        if room > 0:
            connection.execute(_RIPEN, (graph_id, write.apart, now))
            found = connection.execute(_FIRST, (graph_id, write.apart, room))
            first += [(-priority, key, graph_id) for key, priority in found]
    taken = []
    for _, key, graph_id in sorted(first)[: write.limit]:
        owner = wanted[graph_id].owner
        ((trace_id, epoch),) = connection.execute(_TAKE, (owner, now, key)).fetchall()
        taken.append(Held(key, trace_id.decode(errors="replace"), graph_id, epoch))
    return Claimed(tuple(taken))


def disown(connection: sqlite3.Connection, write: Disown, now: float) -> Done | OwnershipLost:
    """Have a trace wait, or be quarantined, that its owner left at its death."""
    deaths = frame(write.deaths)
    changes = (now, deaths, deaths_seal(write.trace, deaths), write.apart)
    if not connection.execute(_DISOWN, (*changes, write.trace, write.epoch, write.owner)).rowcount:
        return OwnershipLost(write.trace_id)
    error = frame(write.error)
    quarantine = (error, error_seal(write.trace, error), write.trace)
    if error is not None and connection.execute(_QUARANTINE, quarantine).rowcount:
        connection.execute(OUTLIVED, (write.trace,))
    return Done()


def acquit(connection: sqlite3.Connection, write: Acquit) -> Done | OwnershipLost:
    """Forget the deaths at which a trace ran."""
    if not connection.execute(_ACQUIT, (write.trace, write.epoch)).rowcount:
        return OwnershipLost(write.trace_id)
    return Done()


def demand(connection: sqlite3.Connection) -> list[Demand]:
    """Of which graphs there are traces that are not at rest, and how many of them wait."""
    with legible(connection):
        return [Demand(*row) for row in connection.execute(_DEMAND).fetchall()]


def held(connection: sqlite3.Connection, owner: str) -> list[Owned]:
    """The traces that the owner of that id has."""
    with legible(connection):
        rows = connection.execute(_HELD, (owner,)).fetchall()
    return [
        Owned(
            key, trace_id, graph_id, epoch, status if status in _STATUSES else "running", step, evidence(key, *deaths)
        )
        for key, trace_id, graph_id, epoch, status, step, *deaths in rows
    ]


def evidence(trace: int, deaths: Frame | None, crc: int | None) -> bytes | None:
    """What is known of the deaths at which a trace ran; None where that is damaged."""
    if deaths is None or deaths_seal(trace, deaths) != crc:
        return None
    try:
        return decode(deaths)
    except FrameDamaged:
        return None


def next_due(connection: sqlite3.Connection, graph_ids: Sequence[str], apart: bool, now: float) -> float | None:
    """When the next trace of those graphs can be claimed: 0 for at once, None if none waits."""
    found: list[float] = []
    for graph_id in graph_ids:
        if connection.execute(_ANY_READY, (graph_id, apart)).fetchone()[0]:
            return 0.0
        found += [due for (due,) in connection.execute(_NEXT, (graph_id, apart))]
    first = min(found, default=None)
    return 0.0 if first is not None and first <= now else first


def backlog(connection: sqlite3.Connection, graph_ids: Sequence[str], now: float) -> Backlog:
    """What there is to do for those graphs."""
    waiting = apart = later = running = quarantined = 0
    since: list[float] = []
    for graph_id in set(graph_ids):
        counted = [(alone, True, *rest) for alone, *rest in connection.execute(_COUNT_READY, (graph_id,))]
        counted += connection.execute(_COUNT_LATER, (now, graph_id)).fetchall()
        for alone, ripe, count, first in counted:
            if not ripe:
                later += count
            elif alone:
                apart += count
            else:
                waiting += count
                since += [] if first is None else [first]
        running += connection.execute(_OWNED, (graph_id,)).fetchone()[0]
        quarantined += connection.execute(_QUARANTINED, (graph_id,)).fetchone()[0]
    return Backlog(waiting, apart, later, running, quarantined, min(since, default=None))
