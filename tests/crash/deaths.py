"""Bugs and deaths to plant in a victim (`Order.plant`): where a kill hits, to the statement."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence

import anyio

from tinyllm.actors import writer
from tinyllm.actors.protocol import Ask, Put
from tinyllm.actors.writer import StorageWriter
from tinyllm.storage.contract import Outcome, Write
from tinyllm.storage.sqlite import prune, write
from tinyllm.storage.sqlite.library import sqlite3
from tinyllm.storage.sqlite.store import SQLiteCheckpointStorage


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def in_first_commit() -> None:
    """All is written, and the transaction is still open."""
    carry_out = write.Writing.carry_out

    def dies(self: write.Writing, writes: Sequence[Write]) -> list[Outcome]:
        carry_out(self, writes)
        die()
        return []

    write.Writing.carry_out = dies  # type: ignore[method-assign]


def after_first_commit() -> None:
    """It is durable, and nobody has heard of it."""
    end = SQLiteCheckpointStorage._end

    def dies(self: SQLiteCheckpointStorage, connection: sqlite3.Connection) -> None:
        end(self, connection)
        die()

    SQLiteCheckpointStorage._end = dies  # type: ignore[method-assign]


def while_pruning() -> None:
    """Checkpoints have been dropped, and the transaction is still open."""
    really = prune.prune

    def dies(connection: sqlite3.Connection, trace: int, keep: int, limit: int) -> int:
        if really(connection, trace, keep, limit):
            die()
        return 0

    prune.prune = dies


def while_returning_pages() -> None:
    """Checkpoints are dropped, and the file is about to shrink; the shortest pause between two steps will do."""
    writer.IDLE_SECONDS = 0.0

    async def dies(self: SQLiteCheckpointStorage, limit: int) -> int:
        die()
        return 0

    SQLiteCheckpointStorage.reclaim = dies  # type: ignore[method-assign]


def slow_disk() -> None:
    """A commit takes 50 ms longer: whatever may be handed over meanwhile is."""
    commit = StorageWriter._commit

    async def slow(self: StorageWriter, batch: list[Put | Ask]) -> None:
        await anyio.sleep(0.05)
        await commit(self, batch)

    StorageWriter._commit = slow  # type: ignore[method-assign]


def before_the_tail_is_written() -> None:
    """The disk is slow, and a batch of several deltas, after a few that were written, is not."""
    commit, written = StorageWriter._commit, 0

    async def dies(self: StorageWriter, batch: list[Put | Ask]) -> None:
        nonlocal written
        await anyio.sleep(0.05)  # whatever may be handed over meanwhile is
        if written >= 3 and len(batch) > 1:
            die()
        await commit(self, batch)
        written += 1

    StorageWriter._commit = dies  # type: ignore[method-assign]
