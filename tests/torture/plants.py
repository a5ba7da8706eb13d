"""Bugs to plant in a victim: the harness must find each of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import attrs

from tinyllm.actors.dispatch import Dispatch
from tinyllm.actors.mailbox import reply
from tinyllm.actors.protocol import Ask, Durable, Put
from tinyllm.actors.schedule import TraceSchedule, WriteNow
from tinyllm.actors.writer import StorageWriter
from tinyllm.storage.contract import Delta, Outcome
from tinyllm.storage.sqlite import SQLiteCheckpointStorage, database, store, write
from tinyllm.storage.sqlite.library import sqlite3
from tinyllm.storage.thread import DedicatedThread, _Job, _settled, loop_caller

BUSY = 0.02
"""Seconds by which a commit takes longer, so that a kill hits it more often."""


def acknowledge_before_commit() -> None:
    """The writer says that a delta is durable, and only then writes it."""
    commit, tell = StorageWriter._commit, StorageWriter._tell

    async def early(self: StorageWriter, batch: list[Put | Ask]) -> None:
        for item in batch:
            if isinstance(item, Put):
                reply(item.reply, Durable(item.delta.number, item.delta.step, item.delta.rev))
        await anyio.sleep(BUSY)
        await commit(self, batch)

    def later(self: StorageWriter, item: Put | Ask, outcome: Outcome) -> None:
        if isinstance(item, Ask):
            tell(self, item, outcome)

    StorageWriter._commit = early  # type: ignore[method-assign]
    StorageWriter._tell = later  # type: ignore[method-assign]


def start_before_commit() -> None:
    """The next node starts as in `async` mode, whatever mode was asked for, and effects wait for nothing."""
    commit, made = StorageWriter._commit, Dispatch.__init__

    async def slow(self: StorageWriter, batch: list[Put | Ask]) -> None:
        await anyio.sleep(BUSY)
        await commit(self, batch)

    def init(self: Dispatch, *args: Any, **options: Any) -> None:
        made(self, *args, **options)
        self._sync = self._commits_output = False

    StorageWriter._commit = slow  # type: ignore[method-assign]
    Dispatch.__init__ = init  # type: ignore[method-assign]


def forget_an_end() -> None:
    """The scheduler loses, of every fifth delta, that an activation ended; all counts agree with that."""
    write = TraceSchedule._write
    forgotten = 0
    unread = 0
    arrived: Counter[int] = Counter()

    def lossy(self: TraceSchedule, delta: Delta, now: float) -> Any:
        nonlocal forgotten, unread
        effects = write(self, delta, now)
        for place, effect in enumerate(effects):
            if isinstance(effect, WriteNow):
                delta = effect.delta
                arrived.update(row.activation for row in delta.arrivals)
                if delta.step % 5 == 4:
                    forgotten += len(delta.ended)
                    unread += sum(arrived[seq] for seq in delta.ended)
                    delta = attrs.evolve(delta, ended=())
                counts = delta.counts
                counts = attrs.evolve(counts, frontier=counts.frontier + forgotten, arrivals=counts.arrivals + unread)
                effects[place] = WriteNow(attrs.evolve(delta, counts=counts))
        return effects

    TraceSchedule._write = lossy  # type: ignore[method-assign]


def normal_for_full() -> None:
    """Commits are not synced, which makes them quicker, and a power cut takes them."""
    connect = database.connect

    def hasty(path: Path) -> sqlite3.Connection:
        connection = connect(path)
        connection.execute("PRAGMA synchronous = NORMAL")
        return connection

    database.connect = store.connect = hasty  # type: ignore[attr-defined]


def believe_a_failed_commit() -> None:
    """What raised is taken for done."""

    def end(self: SQLiteCheckpointStorage, connection: sqlite3.Connection) -> None:
        with suppress(sqlite3.Error):
            connection.execute("COMMIT")

    SQLiteCheckpointStorage._end = end  # type: ignore[method-assign]


def write_without_looking() -> None:
    """Whether a trace is still its own is not looked at where it is written."""
    for name in ("_APPEND", "_APPEND_LAST", "_APPEND_ONE"):
        statement = getattr(write, name)
        for column in ("epoch", "rev"):
            statement = statement.replace(f"AND {column} = ", f"AND {column} >= ")
        setattr(write, name, statement)


def abandoned_cancel() -> None:
    """Whoever waits for a thread is cancelled at once, and what it does is done alone, as `anyio.to_thread` has it with
    `abandon_on_cancel`."""

    async def call(self: DedicatedThread, function: Callable[..., Any], *args: Any) -> Any:
        done, soon = anyio.Event(), loop_caller()

        class Caller:
            def wake(self) -> None:
                with suppress(RuntimeError):  # the loop has ended
                    soon(done.set)

        job = _Job(function, args, Caller())
        self._put(job)
        await done.wait()
        return _settled(job)

    DedicatedThread.call = call  # type: ignore[method-assign,assignment]
