"""Commands: what was left for the owner of a trace, and which questions were answered."""

from __future__ import annotations

from typing import Any

from tinyllm.errors import AlreadyAnswered, TraceEnded
from tinyllm.storage.contract import TERMINAL, Leave, Left
from tinyllm.storage.framing import encode
from tinyllm.storage.sqlite.library import sqlite3
from tinyllm.storage.sqlite.seals import seal

ANSWERED = "UPDATE commands SET consumed = 1, body = NULL WHERE id = ? AND trace = ? AND kind = 'answer'"
CARRIED_OUT = "DELETE FROM commands WHERE id = ? AND trace = ? AND kind != 'answer'"
"""What becomes of a command that a delta of its trace consumes."""

OUTLIVED = "DELETE FROM commands WHERE trace = ? AND kind != 'answer'"
"""What becomes of all that are left for a trace when that ends."""

FORGET_ANSWERS = "DELETE FROM commands WHERE trace = ? AND kind = 'answer' AND activation = ?"

_STATUS = "SELECT status FROM traces WHERE key = ? AND trace_id IS NOT NULL"
_SAME = "SELECT id FROM commands WHERE trace = ? AND kind = ? AND activation IS ? AND name IS ?"
_LEAVE = "INSERT INTO commands (trace, kind, activation, name, body, crc, created_at) VALUES (?, ?, ?, ?, ?, ?, ?)"
# By way of the few that wait, not of the many traces that an owner may have.
_LEFT = """
SELECT t.trace_id, c.id, c.trace, c.kind, c.activation, c.name, c.body, c.created_at, c.crc
FROM commands c INDEXED BY commands_left CROSS JOIN traces t ON t.key = c.trace
WHERE c.consumed = 0 AND t.trace_id IS NOT NULL
"""
_ANSWERS = "SELECT activation, name FROM commands WHERE trace = ? AND kind = 'answer' ORDER BY id"
_OF_OWNER = f"{_LEFT} AND t.owner = ? ORDER BY c.id"
_OF_TRACE = f"{_LEFT} AND c.trace = ? ORDER BY c.id"


def leave(connection: sqlite3.Connection, write: Leave, now: float) -> Left | TraceEnded | AlreadyAnswered | None:
    """Leave a command; None if there is no such trace."""
    found = connection.execute(_STATUS, (write.trace,)).fetchone()
    if found is None:
        return None
    if found[0] in TERMINAL:
        return TraceEnded(write.trace_id, found[0])
    what = (write.trace, write.kind, write.activation, write.name)
    same = connection.execute(_SAME, what).fetchone()
    if same is None:
        body = None if write.body is None else encode(write.body)
        return Left(connection.execute(_LEAVE, (*what, body, seal((*what, body)), now)).lastrowid or 0)
    return AlreadyAnswered(write.trace_id, write.name or "") if write.kind == "answer" else Left(same[0])


def answers(connection: sqlite3.Connection, trace: int) -> list[tuple[bytes, str]]:
    """The questions that have an answer, by activation and name."""
    return connection.execute(_ANSWERS, (trace,)).fetchall()


def left(connection: sqlite3.Connection, owner: str | None, trace: int | None) -> list[tuple[Any, ...]]:
    """The rows of what was left and not yet consumed, each after the id of its trace."""
    if trace is not None:
        return connection.execute(_OF_TRACE, (trace,)).fetchall()
    return connection.execute(_OF_OWNER, (owner,)).fetchall()
