"""Leases: which processes may execute traces, and when each was last heard of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs

from tinyllm.storage.contract import Lease, Owner
from tinyllm.storage.owners import alive, boottime
from tinyllm.storage.sqlite.library import sqlite3
from tinyllm.storage.sqlite.sense import check

_FIELDS = tuple(field.name for field in attrs.fields(Owner))
_COLUMNS = ", ".join(_FIELDS)
_RENEW = f"""
INSERT INTO owners ({_COLUMNS}, beat, renewed_at) VALUES (?, ?, ?, ?, ?, ?, ?, 1, ?)
ON CONFLICT (id) DO UPDATE SET beat = beat + 1, renewed_at = excluded.renewed_at
"""
_LET_GO = "UPDATE traces SET owner = NULL WHERE owner = ?"
# One that a trace names, or was taken away from at its death, tells how far its process was.
_UNNAMED = """
NOT EXISTS (SELECT 1 FROM traces WHERE owner = owners.id) AND NOT EXISTS (SELECT 1 FROM traces WHERE died = owners.id)
"""
_REMOVE = f"DELETE FROM owners WHERE id = ? AND {_UNNAMED}"
_IDLE = f"SELECT {_COLUMNS} FROM owners WHERE {_UNNAMED}"
_ALL = f"SELECT {_COLUMNS}, beat FROM owners"
_NAMED = "SELECT DISTINCT owner FROM traces INDEXED BY traces_owner WHERE owner IS NOT NULL ORDER BY owner"


def renew(connection: sqlite3.Connection, owner: Owner) -> None:
    connection.execute(_RENEW, (*attrs.astuple(owner), boottime()))


def retire(connection: sqlite3.Connection, owner: str) -> None:
    """Remove a lease, unless a trace names it; what its owner still had is interrupted. Inside the transaction that is
    open."""
    connection.execute(_LET_GO, (owner,))
    connection.execute(_REMOVE, (owner,))


def remove(connection: sqlite3.Connection, owner: str) -> None:
    """Remove a lease, unless a trace names it."""
    connection.execute(_REMOVE, (owner,))


def idle(connection: sqlite3.Connection) -> list[str]:
    """The dead owners that no trace names."""
    return [row[0] for row in connection.execute(_IDLE).fetchall() if alive(_owner(row)) is False]


def leases(connection: sqlite3.Connection) -> dict[str, Lease]:
    """All leases, by owner id."""
    found = {}
    for *columns, beat in connection.execute(_ALL):
        owner = _owner(columns)
        found[owner.id] = Lease(owner.id, owner, beat, alive(owner))
    return found


def named(connection: sqlite3.Connection) -> list[Lease]:
    """The owners that traces have, by id."""
    found = connection.execute(_NAMED).fetchall()
    known = leases(connection) if found else {}  # for each it is looked whether its process lives
    return [known.get(owner) or Lease(owner, None, 0, False) for (owner,) in found]


def _owner(row: Sequence[Any]) -> Owner:
    owner = Owner(**dict(zip(_FIELDS, row, strict=True)))
    check(owner)
    return owner
