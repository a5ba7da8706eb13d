"""The rows of one delta, and a store that appends them: what any design like tinyllm's must write for a finished node.

One message, one step, one checkpoint, one activation planned and one ended, and where the trace now is. The layout is
that of tinyllm's own store, without what joins, forks, retries and leases need.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Sequence
from pathlib import Path

import attrs
from sqlite_utils.utils import sqlite3  # the library that tinyllm uses: both choose it in the same way

ROWS = 6
"""Rows that one delta inserts or updates."""

TRACE = 1
BASE = TRACE << 32
"""What is added to a sequence number to make a row id: all rows of a trace are one range."""

SCHEMA = """
CREATE TABLE traces (key INTEGER PRIMARY KEY, trace_id TEXT UNIQUE, status TEXT, epoch INTEGER, step INTEGER,
  messages INTEGER, activations INTEGER, updated REAL);
CREATE TABLE messages (id INTEGER PRIMARY KEY, step INTEGER, node TEXT, consumers INTEGER, body TEXT, crc INTEGER);
CREATE TABLE activations (id INTEGER PRIMARY KEY, node TEXT, message INTEGER, born INTEGER, done INTEGER);
CREATE INDEX live ON activations (id) WHERE done IS NULL;
CREATE TABLE steps (id INTEGER PRIMARY KEY, activation INTEGER, node TEXT, at REAL);
CREATE TABLE checkpoints (id INTEGER PRIMARY KEY, status TEXT, node TEXT, messages INTEGER, activations INTEGER,
  at REAL);
"""


@attrs.frozen
class Delta:
    step: int
    node: str
    ended: int
    planned: int
    body: bytes


class Store:
    """For the thread that calls it: one connection, WAL, synchronous = FULL."""

    def __init__(self, path: Path) -> None:
        self._connection = connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.executescript(SCHEMA)
        connection.execute("INSERT INTO traces VALUES (?, 'trace', 'running', 1, 0, 0, 1, ?)", (TRACE, time.time()))
        connection.execute("INSERT INTO activations VALUES (?, 'node', NULL, 0, NULL)", (BASE + 1,))

    def append(self, deltas: Sequence[Delta]) -> None:
        """Write `deltas`, which follow what is there, in one transaction."""
        now = time.time()
        first, last = deltas[0], deltas[-1]
        connection = self._connection
        connection.execute("BEGIN IMMEDIATE")
        written = connection.execute(
            "UPDATE traces SET step = ?, messages = ?, activations = ?, updated = ?"
            " WHERE key = ? AND epoch = 1 AND step = ?",
            (last.step, last.step, last.planned, now, TRACE, first.step - 1),
        )
        assert written.rowcount == 1
        many = connection.executemany
        many(
            "INSERT INTO messages VALUES (?, ?, ?, 1, ?, ?)",
            [(BASE + d.step, d.step, d.node, d.body.decode(), zlib.crc32(d.body)) for d in deltas],
        )
        many(
            "INSERT INTO activations VALUES (?, ?, ?, ?, NULL)",
            [(BASE + d.planned, d.node, d.step, d.step) for d in deltas],
        )
        many("UPDATE activations SET done = ? WHERE id = ?", [(d.step, BASE + d.ended) for d in deltas])
        many("INSERT INTO steps VALUES (?, ?, ?, ?)", [(BASE + d.step, d.ended, d.node, now) for d in deltas])
        many(
            "INSERT INTO checkpoints VALUES (?, 'running', ?, ?, ?, ?)",
            [(BASE + d.step, d.node, d.step, d.planned, now) for d in deltas],
        )
        connection.execute("COMMIT")

    def close(self) -> None:
        self._connection.close()
