"""The SQLite store: what it opens, which thread does what, and how the outcome of a commit is always known."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from time import monotonic, sleep, time
from traceback import clear_frames
from typing import TypeVar

from tinyllm.errors import DatabaseLocked, StorageNotOpen, StoragePathError, StorageUnavailable
from tinyllm.storage.contract import (
    Backlog,
    CheckpointRecord,
    CheckpointStorage,
    Command,
    Demand,
    HighWater,
    Intact,
    Lease,
    MessageRow,
    Outcome,
    Owned,
    Owner,
    Reads,
    Snapshot,
    Status,
    StepRow,
    StorageConfig,
    TraceRecord,
    Write,
)
from tinyllm.storage.high_water import HighWaterFile, files, path_in
from tinyllm.storage.owners import boottime, keep, let_go
from tinyllm.storage.sqlite import claims, owned, prune
from tinyllm.storage.sqlite.commands import answers
from tinyllm.storage.sqlite.commits import CommitNotes, acknowledged, refuse_missing
from tinyllm.storage.sqlite.database import FILE_NAME, connect_reader, connect_writer, drop_journal, open_database
from tinyllm.storage.sqlite.faults import LOCK_TIMEOUT, is_locked, translated
from tinyllm.storage.sqlite.library import sqlite3
from tinyllm.storage.sqlite.load import Loader
from tinyllm.storage.sqlite.write import Writing
from tinyllm.storage.thread import DedicatedThread

T = TypeVar("T")

_RENEW_EVERY = 1.0
"""Seconds between two renewals by commits."""

_BUSY_PAUSE = 0.01
"""Seconds between two attempts at what SQLite does not wait for by itself."""

_TOKEN = "SELECT sign FROM transactions"
_PARSE_SCHEMA = "SELECT 1 FROM transactions LIMIT 0"
"""The first statement that names a table has SQLite parse all of them."""

_SIGN = "UPDATE transactions SET sign = ?"
_COUNT = "UPDATE transactions SET sign = ?, number = number + 1 RETURNING number"
_COUNTED = "SELECT number FROM transactions"
_UNKNOWN = -1
"""As the token in doubt: whatever is there now. No transaction has it."""


class SQLiteCheckpointStorage(CheckpointStorage):
    """Keeps traces in a directory: the database `tinyllm.db`, and what running processes note beside it.

    One thread writes, with the one connection that does; a second reads; a third connection, for whichever thread keeps
    the lease, must not wait behind the first's batches.
    """

    def __init__(self, config: StorageConfig | str | os.PathLike[str] | None = None) -> None:
        if config is None or isinstance(config, (str, os.PathLike)):
            config = StorageConfig() if config is None else StorageConfig(sqlite_path=os.fspath(config))
        self.config = config
        # Absolute: a program may change its working directory.
        self._directory = Path(config.sqlite_path).expanduser().absolute()
        self.name = str(self._directory)
        self._path = self._directory / FILE_NAME
        self._writer = DedicatedThread(f"tinyllm writer {self.name}", store=self.name)
        self._reader = DedicatedThread(f"tinyllm reader {self.name}", store=self.name)
        self._connection: sqlite3.Connection | None = None
        self._broken = False
        """The connection that writes has failed: it is made anew before it is used again."""
        self._in_doubt: int | None = None
        """The token of a transaction whose COMMIT failed, as long as it is not settled what became of it."""
        self._has_wal = True
        self._reading: sqlite3.Connection | None = None
        self._renewed = 0.0
        self._lease_lock = threading.Lock()
        self._leasing: sqlite3.Connection | None = None
        self._lease_broken = False
        self._owners: set[str] = set()
        # Its own lock: the other may be held for as long as another process holds the database's.
        self._marks_lock = threading.Lock()
        self._marks: dict[str, HighWaterFile] = {}
        self._notes: CommitNotes | None = None
        self._pid = 0

    def __repr__(self) -> str:
        return f"<SQLiteCheckpointStorage {self.name}, {'not open' if self._connection is None else 'open'}>"

    async def initialize(self) -> None:
        self._refuse_forked()
        self._writer.start()
        try:
            await self._writer.call(self._open)
        except BaseException:
            self._writer.stop()
            raise
        self._reader.start()

    async def close(self) -> None:
        if self._connection is None or self._pid != os.getpid():
            return
        # Another task may be closing it at the same time; each waits until it is closed.
        with suppress(StorageNotOpen):
            await self._reader.call(self._close_reading)
            self._reader.stop()
        with suppress(StorageNotOpen):
            await self._writer.call(self._close)
            self._writer.stop()

    # -- writing -----------------------------------------------------------------------------------------------

    async def commit(self, writes: Sequence[Write]) -> list[Outcome]:
        return await self._writer.call(self._commit, tuple(writes))

    async def reclaim(self, limit: int) -> int:
        return await self._writer.call(self._reclaim, limit)

    def _commit(self, writes: tuple[Write, ...]) -> list[Outcome]:
        now = time()
        token = random.getrandbits(62)
        with self._writing() as connection:
            if self._notes is None:
                self._notes = CommitNotes(self._directory)
            try:  # BEGIN too: what another thread throws into this one comes between any two statements
                connection.execute("BEGIN IMMEDIATE")
                writing = Writing(connection, self.name, now)
                outcomes = writing.carry_out(writes)
                self._renew_if_due(writing)
                ((number,),) = connection.execute(_COUNT, (token,)).fetchall()
            except BaseException as error:
                _end_statements(error)
                _roll_back(connection)
                raise
            try:
                self._end(connection)
            except BaseException:
                self._in_doubt = token
                if not self._reopen():
                    raise
            self._notes.note(number)
            return outcomes

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """The connection that writes, for one piece of work. One that failed is not used again: it may have been opened
        while the file was read-only, or count on what an fsync did not write. (A lock leaves nothing in doubt.)"""
        connection = self._opened(self._connection)
        with translated(self._path):
            if self._broken or self._in_doubt is not None:
                self._reopen()
                connection = self._opened(self._connection)
            if self._in_doubt is not None:
                raise DatabaseLocked(str(self._path), LOCK_TIMEOUT)
            try:
                yield connection
            except sqlite3.Error as error:
                self._broken = self._broken or not is_locked(error)
                raise

    def _end(self, connection: sqlite3.Connection) -> None:
        connection.execute("COMMIT")

    def _reopen(self) -> bool:
        """Make the connection that writes anew. Whether a transaction whose COMMIT failed is durable all the same.

        If it is there, it is made so; where that is not possible within the lock time-out, the answer is no although it
        is there. If it is not, it is made sure that it never will be. Raises where the disk lets neither be done. As
        long as that is not settled, nothing else is written: what followed would rest on what a power cut may take.
        """
        self._broken = True
        self._opened(self._connection).close()
        connection = self._connection = connect_writer(self._path)
        if not self._has_wal:
            drop_journal(connection)
            self._in_doubt = _UNKNOWN if self._in_doubt is None else self._in_doubt
        there = self._in_doubt is not None and self._settle(connection, self._in_doubt)
        self._broken = self._in_doubt is not None
        return there

    def _settle(self, connection: sqlite3.Connection, token: int) -> bool:
        try:
            connection.execute("BEGIN IMMEDIATE")
            (found,) = connection.execute(_TOKEN).fetchone()
            # Not there: its frames may stand in the WAL, complete but unannounced, and a recovery after a crash would
            # take them up, if another transaction did not overwrite them. There: so may the end of a rollback journal
            # that was cut off, but perhaps not on the disk; to undo it after a crash is only prevented by another one.
            connection.execute(_SIGN, (random.getrandbits(62),))
            self._in_doubt = _UNKNOWN
            connection.execute("COMMIT")
        except BaseException:
            _roll_back(connection)
            raise
        if token in (found, _UNKNOWN):
            # After a failed fsync the kernel takes what it did not write for written: only writing it elsewhere helps,
            # and beginning the WAL anew, for what was appended to a broken one would be lost with it. The busy time-out
            # waits for all who read in the WAL and for writers, but not for another's checkpoint.
            deadline = monotonic() + LOCK_TIMEOUT
            while connection.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()[0]:
                if monotonic() > deadline:
                    return False
                sleep(_BUSY_PAUSE)
        self._in_doubt = None
        return bool(found == token)

    def _renew_if_due(self, writing: Writing) -> None:
        now = boottime()
        if now - self._renewed >= _RENEW_EVERY:
            self._renewed = now
            writing.renew(now)

    def _reclaim(self, limit: int) -> int:
        with self._writing() as connection:
            more = prune.buried(connection) and self._purge(connection)
            connection.execute(f"PRAGMA incremental_vacuum({max(int(limit), 1)})").fetchall()
            (left,) = connection.execute("PRAGMA freelist_count").fetchone()
            if not left and not more:
                # The file shrinks when the WAL is moved into it; not worth waiting for a reader.
                connection.execute("PRAGMA busy_timeout = 0")
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
                connection.execute(f"PRAGMA busy_timeout = {LOCK_TIMEOUT * 1000:.0f}")
            return int(left) + more

    def _purge(self, connection: sqlite3.Connection) -> bool:
        try:
            connection.execute("BEGIN IMMEDIATE")
            more = prune.purge(connection)
            connection.execute("COMMIT")
        except BaseException:
            _roll_back(connection)
            raise
        return more

    # -- reading -----------------------------------------------------------------------------------------------

    async def trace(self, trace_id: str) -> TraceRecord | None:
        return await self._ask(lambda store: store.trace(trace_id))

    async def traces(
        self,
        *,
        prefix: str = "",
        graph_id: str | None = None,
        status: Status | None = None,
        limit: int = 100,
        offset: int = 0,
    ) -> list[TraceRecord]:
        return await self._ask(lambda store: store.traces(prefix, graph_id, status, limit, offset))

    async def definition(self, trace_id: str) -> bytes:
        return await self._ask(lambda store: store.definition(trace_id))

    async def load(self, trace_id: str, rev: int | None = None) -> Snapshot:
        return await self._ask(lambda store: store.load(trace_id, rev))

    async def load_intact(self, trace_id: str) -> Intact:
        return await self._ask(lambda store: store.load_intact(trace_id))

    async def checkpoints(self, trace_id: str, *, limit: int = 100, offset: int = 0) -> list[CheckpointRecord]:
        return await self._ask(lambda store: store.checkpoints(trace_id, limit, offset))

    async def steps(self, trace_id: str, *, after: int = 0, limit: int = 1000) -> list[StepRow]:
        return await self._ask(lambda store: store.steps(trace_id, after, limit))

    async def messages(
        self, trace_id: str, *, rev: int | None = None, after: int = 0, limit: int = 1000
    ) -> list[MessageRow]:
        return await self._ask(lambda store: store.messages(trace_id, rev, after, limit))

    async def find_checkpoint(
        self, trace_id: str, *, node: str | None = None, step: int | None = None
    ) -> CheckpointRecord:
        return await self._ask(lambda store: store.find_checkpoint(trace_id, node, step))

    async def commands(self, *, owner: str | None = None, trace: int | None = None) -> list[Command]:
        return await self._ask(lambda store: store.commands(owner, trace))

    async def next_due(self, graph_ids: Sequence[str], *, apart: bool = False) -> float | None:
        return await self._ask(lambda store: claims.next_due(store.connection, graph_ids, apart, time()))

    async def backlog(self, graph_ids: Sequence[str]) -> Backlog:
        return await self._ask(lambda store: claims.backlog(store.connection, graph_ids, time()))

    async def demand(self) -> list[Demand]:
        return await self._ask(lambda store: claims.demand(store.connection))

    async def owners(self) -> list[Lease]:
        return await self._ask(lambda store: owned.named(store.connection))

    async def held(self, owner: str) -> list[Owned]:
        return await self._ask(lambda store: claims.held(store.connection, owner))

    async def answered(self, trace: int) -> list[tuple[bytes, str]]:
        return await self._ask(lambda store: answers(store.connection, trace))

    def read_now(self, question: Callable[[Reads], T]) -> T:
        return self._reader.call_now(self._answer, question)

    async def _ask(self, question: Callable[[Loader], T]) -> T:
        return await self._reader.call(self._answer, question)

    def _answer(self, question: Callable[[Loader], T]) -> T:
        with translated(self._path):
            # A read that was queued behind the closing is refused, and opens nothing again.
            connection = self._opened(self._reading)
            try:
                connection.execute("BEGIN")  # one view of all it reads, whatever is pruned meanwhile
                return question(Loader(connection, self._directory, self))
            except BaseException as error:
                _end_statements(error)
                raise
            finally:
                _roll_back(connection)

    # -- ownership ---------------------------------------------------------------------------------------------

    def renew(self, owner: Owner) -> None:
        with self._leases() as connection:
            # Before the lease can be seen: another store in this process would take it for a dead owner's.
            self._owners.add(owner.id)
            keep(owner.id)
            owned.renew(connection, owner)
            self._renewed = boottime()
            with suppress(StoragePathError):  # who notes something there will hear of it
                self._marks_of(owner).make()

    def retire(self, owner: Owner) -> None:
        with self._leases() as connection:
            self._owners.discard(owner.id)
            let_go(owner.id)
            try:
                connection.execute("BEGIN IMMEDIATE")
                owned.retire(connection, owner.id)
                connection.execute("COMMIT")
            except BaseException:
                _roll_back(connection)
                raise
            with self._marks_lock:
                if marks := self._marks.pop(owner.id, None):
                    marks.close()
            self._sweep(connection)

    def high_water(self, owner: Owner, trace: int, epoch: int) -> HighWater:
        self._refuse_forked()
        return self._marks_of(owner).slot(trace, epoch)

    def _marks_of(self, owner: Owner) -> HighWaterFile:
        with self._marks_lock:
            self._opened(self._leasing)
            if owner.id not in self._marks:
                self._marks[owner.id] = HighWaterFile(path_in(self._directory, owner.id))
            return self._marks[owner.id]

    @contextmanager
    def _leases(self) -> Iterator[sqlite3.Connection]:
        """The connection for leases, for one thread at a time."""
        self._refuse_forked()  # before the lock, which a thread of the parent may have held at the fork
        with self._lease_lock, translated(self._path):
            if self._lease_broken:  # it may have been opened while the file was read-only
                self._opened(self._leasing).close()
                self._leasing = self._connect_for_leases()
                self._lease_broken = False
            try:
                yield self._opened(self._leasing)
            except sqlite3.Error as error:
                self._lease_broken = not is_locked(error)
                self._broken = self._broken or not self._has_wal  # it is the same journal that was not synced
                raise

    def _connect_for_leases(self) -> sqlite3.Connection:
        connection = connect_writer(self._path)
        if self._has_wal:
            # Seen by other processes at once; after a power cut no lease matters. A rollback journal is not safe with
            # less than FULL.
            connection.execute("PRAGMA synchronous = NORMAL")
        return connection

    def _sweep(self, connection: sqlite3.Connection) -> None:
        """Remove what dead owners left that no trace needs any more."""
        there = files(self._directory)  # before the leases: an owner has one before it has a file
        for owner in owned.idle(connection):
            owned.remove(connection, owner)
        known = {path_in(self._directory, owner) for owner in owned.leases(connection)}
        for path in there:
            if path not in known:
                path.unlink(missing_ok=True)

    # -- opening and closing, each in the thread that uses it --------------------------------------------------

    def _open(self) -> None:
        if self._connection is not None:
            return
        with ExitStack() as opened:
            noted = acknowledged(self._directory)
            connection = open_database(self._directory)
            opened.callback(connection.close)
            with translated(self._path):
                refuse_missing(self._directory, noted, *connection.execute(_COUNTED).fetchone())
                self._has_wal = connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
                leasing = self._connect_for_leases()
                opened.callback(leasing.close)
                reading = connect_reader(self._path)
                opened.callback(reading.close)
                for each in (connection, reading):
                    each.execute(_PARSE_SCHEMA).fetchall()
                (timeout,) = leasing.execute("PRAGMA busy_timeout").fetchone()
            with suppress(DatabaseLocked, StorageUnavailable), translated(self._path):
                leasing.execute("PRAGMA busy_timeout = 0")  # who will only read need not be able to write
                self._sweep(leasing)
            leasing.execute(f"PRAGMA busy_timeout = {timeout}")
            opened.pop_all()
        self._connection, self._leasing, self._reading, self._pid = connection, leasing, reading, os.getpid()

    def _close_reading(self) -> None:
        if self._reading is not None:
            self._reading.close()
            self._reading = None

    def _close(self) -> None:
        with self._lease_lock:
            if self._leasing is not None:
                self._leasing.close()
                self._leasing = None
            for owner in self._owners:
                let_go(owner)
            self._owners.clear()
            with self._marks_lock:
                for marks in self._marks.values():
                    marks.close()
                self._marks.clear()
        if self._notes is not None:
            self._notes.close()
            self._notes = None
        if self._connection is not None:
            with translated(self._path):
                self._connection.close()
            self._connection = None

    def _refuse_forked(self) -> None:
        if self._connection is not None and self._pid != os.getpid():
            raise StorageNotOpen(self.name, "it was opened by the parent process; open one in this process")

    def _opened(self, connection: sqlite3.Connection | None) -> sqlite3.Connection:
        if connection is None:
            raise StorageNotOpen(self.name, "it is not open; call initialize() first")
        return connection


def _end_statements(error: BaseException) -> None:
    """Those that the frames of `error` were in the middle of, and hold on to as long as somebody holds on to it: one
    that has not ended keeps the next transaction from its end, or shows it an old state."""
    clear_frames(error.__traceback__)


def _roll_back(connection: sqlite3.Connection) -> None:
    if connection.in_transaction:
        connection.execute("ROLLBACK")
