"""One transaction for each commit, and an outcome that is always known."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import anyio
import attrs
import pytest
import trio

from tests.storage.deltas import Writer
from tinyllm.errors import (
    DatabaseLocked,
    OwnershipLost,
    StorageError,
    StorageNotOpen,
    StoragePathError,
    StorageUnavailable,
    TraceExists,
    ValueNotStorable,
)
from tinyllm.storage import caps
from tinyllm.storage.contract import (
    Admitted,
    Append,
    Appended,
    Delete,
    Done,
    Release,
)
from tinyllm.storage.owners import this_process
from tinyllm.storage.sqlite import SQLiteCheckpointStorage, database, store, write
from tinyllm.storage.sqlite.library import sqlite3

pytestmark = pytest.mark.anyio


@pytest.fixture
async def storage(tmp_path: Path, anyio_backend: str) -> AsyncIterator[SQLiteCheckpointStorage]:
    opened = SQLiteCheckpointStorage(tmp_path)
    await opened.initialize()
    yield opened
    await opened.close()


@pytest.fixture
async def writer(storage: SQLiteCheckpointStorage) -> Writer:
    new = Writer("t")
    return new.admitted((await storage.commit([new.admit()]))[0])


# -- order and isolation of writes -----------------------------------------------------------------------------


async def test_a_refused_write_leaves_the_others_alone(storage: SQLiteCheckpointStorage, writer: Writer) -> None:
    other = Writer("other")
    outcomes = await storage.commit(
        [
            Writer("t").admit(definition=b'"unused"'),
            writer.append(body=b"1"),
            other.admit(),
            Append("t", attrs.evolve(writer.delta(), epoch=7)),
            Release(99, 1),
            Delete(99),
        ]
    )
    assert [type(outcome) for outcome in outcomes] == [TraceExists, Appended, Admitted, OwnershipLost, Done, Done]
    assert (await storage.load("t")).rev == 1
    assert (await storage.load("other")).rev == 0
    assert storage._connection is not None
    assert storage._connection.execute("SELECT count(*) FROM graphs").fetchone() == (1,)


async def test_writes_of_one_trace_happen_in_their_order(storage: SQLiteCheckpointStorage, writer: Writer) -> None:
    before = writer.append(body=b"1")
    acquire = writer.acquire("an owner", definition=b"[]")
    late = copy.deepcopy(writer).append(body=b"2")
    writer.epoch = 2
    after = writer.append(body=b"3")
    outcomes = await storage.commit([before, acquire, late, after, Release(writer.key, 2)])
    assert [type(outcome).__name__ for outcome in outcomes] == [
        "Appended",
        "Acquired",
        "OwnershipLost",
        "Appended",
        "Done",
    ]
    assert [row.body for row in await storage.messages("t")] == [b"{}", b"1", b"3"]
    assert await storage.definition("t") == b"[]"


async def test_deltas_appended_again_in_one_batch_with_new_ones(
    storage: SQLiteCheckpointStorage, writer: Writer
) -> None:
    deltas = [writer.append(body=b"%d" % n) for n in range(4)]
    await storage.commit(deltas[:2])
    assert await storage.commit(deltas) == [Appended(n) for n in (1, 2, 3, 4)]
    assert await storage.commit([*deltas, deltas[0], deltas[3]]) == [Appended(n) for n in (1, 2, 3, 4, 1, 4)]
    assert len(await storage.messages("t")) == 5


async def test_the_same_delta_twice_in_one_batch(storage: SQLiteCheckpointStorage, writer: Writer) -> None:
    delta = writer.append(body=b"1")
    assert await storage.commit([delta, delta]) == [Appended(1), Appended(1)]
    assert len(await storage.messages("t")) == 2


async def test_a_gap_loses_what_follows_it(storage: SQLiteCheckpointStorage, writer: Writer) -> None:
    deltas = [writer.append(body=b"%d" % n) for n in range(4)]
    outcomes = await storage.commit([deltas[0], deltas[2], deltas[3]])
    assert [type(outcome) for outcome in outcomes] == [Appended, OwnershipLost, OwnershipLost]
    assert (await storage.load("t")).rev == 1


async def test_what_is_too_big_is_refused_with_what_builds_on_it(
    storage: SQLiteCheckpointStorage, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caps, "MESSAGE_CAP", 100)
    fits, big, after = (writer.append(body=b"x" * size) for size in (100, 101, 1))
    other = Writer("other")
    outcomes = await storage.commit(
        [
            fits,
            big,
            after,
            other.admit(),
            Writer("big").admit(definition=b"x" * 101),
            Writer("failed").admit(status="failed", error=b"x" * 101),
        ]
    )
    assert [type(outcome) for outcome in outcomes] == [
        Appended,
        ValueNotStorable,
        OwnershipLost,
        Admitted,
        ValueNotStorable,
        ValueNotStorable,
    ]
    assert len(await storage.messages("t")) == 2


async def test_keys_of_deleted_traces_are_never_given_again(storage: SQLiteCheckpointStorage, writer: Writer) -> None:
    """Else what a late owner of the old trace still sends could fit the new one."""
    await storage.commit([Delete(writer.key)])
    assert await storage.reclaim(10) == 0
    again = Writer("t")
    again.admitted((await storage.commit([again.admit()]))[0])
    assert again.key > writer.key
    (outcome,) = await storage.commit([writer.append()])
    assert isinstance(outcome, OwnershipLost)


# -- a COMMIT that fails ---------------------------------------------------------------------------------------


class Failing(SQLiteCheckpointStorage):
    """Its next COMMIT fails: after the fact, or before it."""

    durable: bool | None = None

    def _end(self, connection: sqlite3.Connection) -> None:
        durable, self.durable = self.durable, None
        if durable is not False:
            super()._end(connection)
        if durable is not None:
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode = 10
            raise error


@pytest.fixture
async def failing(tmp_path: Path, anyio_backend: str) -> AsyncIterator[Failing]:
    opened = Failing(tmp_path)
    await opened.initialize()
    yield opened
    await opened.close()


async def test_a_commit_that_failed_and_is_there_all_the_same(failing: Failing) -> None:
    writer = Writer("t")
    failing.durable = True
    writer.admitted((await failing.commit([writer.admit()]))[0])
    failing.durable = True
    assert await failing.commit([writer.append(end=1, plan=["b"])]) == [Appended(1)]
    assert (await failing.load("t")).rev == 1
    assert await failing.commit([writer.append(end=2)]) == [Appended(2)]


async def test_a_commit_that_failed_and_is_not_there(failing: Failing) -> None:
    writer = Writer("t")
    writer.admitted((await failing.commit([writer.admit()]))[0])
    failing.durable = False
    delta = writer.append(end=1, plan=["b"])
    with pytest.raises(StoragePathError, match=r"the disk failed \(disk I/O error\)"):
        await failing.commit([delta])
    assert (await failing.load("t")).rev == 0
    assert await failing.commit([delta]) == [Appended(1)]


async def test_a_commit_that_is_there_but_cannot_be_made_durable_raises(
    failing: Failing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it is there is decided by committing it again."""
    monkeypatch.setattr(database, "LOCK_TIMEOUT", 0.01)
    monkeypatch.setattr(store, "LOCK_TIMEOUT", 0.01)
    writer = Writer("t")
    writer.admitted((await failing.commit([writer.admit()]))[0])
    delta = writer.append(end=1, plan=["b"])
    with closing(sqlite3.connect(failing._path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM traces").fetchall()  # what it sees must not be overwritten
        failing.durable = True
        with pytest.raises(StoragePathError, match=r"the disk failed \(disk I/O error\)"):
            await failing.commit([delta])
    assert await failing.commit([delta]) == [Appended(1)]
    assert len(await failing.messages("t")) == 2
    assert await failing.commit([writer.append(end=2)]) == [Appended(2)]


async def test_what_is_appended_to_a_commit_that_failed_never_rests_on_it(
    failing: Failing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody who reads in the WAL keeps it from beginning anew, and behind what was not synced nothing is safe."""
    monkeypatch.setattr(database, "LOCK_TIMEOUT", 0.01)
    monkeypatch.setattr(store, "LOCK_TIMEOUT", 0.01)
    if not os.path.exists(f"{failing._path}-wal"):
        pytest.skip("this SQLite is not trusted with a WAL")
    writer = Writer("t")
    writer.admitted((await failing.commit([writer.admit()]))[0])
    delta = writer.append(end=1, plan=["b"])
    with closing(sqlite3.connect(failing._path, isolation_level=None, check_same_thread=False)) as reader:
        end = failing._end

        def read_the_newest(connection: sqlite3.Connection) -> None:
            try:
                end(connection)
            finally:
                reader.execute("BEGIN")
                reader.execute("SELECT * FROM traces").fetchall()

        with monkeypatch.context() as patch:
            patch.setattr(failing, "_end", read_the_newest)
            failing.durable = True
            with pytest.raises(StorageUnavailable, match="the disk failed"):
                await failing.commit([delta])
        with pytest.raises(DatabaseLocked):
            await failing.commit([delta])
    assert await failing.commit([delta]) == [Appended(1)]


@pytest.mark.parametrize("durable", [True, False])
async def test_what_became_of_a_commit_is_settled_as_soon_as_the_database_can_be_opened(
    failing: Failing, durable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = Writer("t")
    writer.admitted((await failing.commit([writer.admit()]))[0])
    delta = writer.append(end=1, plan=["b"])
    refusals = [StorageUnavailable(failing.name, "it cannot be opened")] * 2

    def connect(path: Path) -> sqlite3.Connection:
        if refusals:
            raise refusals.pop()
        return database.connect_writer(path)

    monkeypatch.setattr(store, "connect_writer", connect)
    failing.durable = durable
    for _ in range(2):
        with pytest.raises(StorageUnavailable, match="cannot be opened"):
            await failing.commit([delta])
        assert (await failing.load("t")).rev == (1 if durable else 0), "reads go on"
    assert await failing.commit([delta]) == [Appended(1)]
    assert await failing.reclaim(10) == 0
    assert await failing.commit([writer.append(end=2)]) == [Appended(2)]


_LOCKS = """
import fcntl, sys
with open(sys.argv[1], "r+b") as file:
    fcntl.lockf(file, fcntl.LOCK_EX, 1, int(sys.argv[2]))
    print(flush=True)
    sys.stdin.read()
"""
_WAL_CHECKPOINT_LOCK = 121
"""The byte of the -shm file that locks out a second checkpoint (SQLite's file format, "WAL-index locking")."""


async def test_making_a_commit_durable_waits_for_anothers_checkpoint(
    failing: Failing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite does not, whatever its busy time-out."""
    writer = Writer("t")
    writer.admitted((await failing.commit([writer.admit()]))[0])
    index = f"{failing._path}-shm"
    if not os.path.exists(index):
        pytest.skip("this SQLite is not trusted with a WAL")
    command = [sys.executable, "-c", _LOCKS, index, str(_WAL_CHECKPOINT_LOCK)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdin
        assert other.stdout
        other.stdout.readline()
        pauses: list[float] = []

        def go_on(seconds: float) -> None:
            pauses.append(seconds)
            other.communicate()

        monkeypatch.setattr(store, "sleep", go_on)
        failing.durable = True
        assert await failing.commit([writer.append(end=1, plan=["b"])]) == [Appended(1)]
    assert len(pauses) == 1
    assert (await failing.load("t")).rev == 1


async def test_what_fails_inside_the_transaction_is_rolled_back(
    storage: SQLiteCheckpointStorage, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise sqlite3.OperationalError("no")

    delta = writer.append(end=1)
    with monkeypatch.context() as patch:
        patch.setattr(store, "boottime", lambda: float("inf"))
        patch.setattr(write.Writing, "renew", fail)
        with pytest.raises(StorageError, match="no"):
            await storage.commit([delta])
    assert (await storage.load("t")).rev == 0
    assert await storage.commit([delta]) == [Appended(1)]


async def test_a_connection_that_failed_is_not_used_again(
    storage: SQLiteCheckpointStorage, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(code: int) -> None:
        error = sqlite3.OperationalError("no")
        error.sqlite_errorcode = code
        raise error

    delta = writer.append(end=1)
    for code, kept in ((5, True), (10 | 3 << 8, False), (13, False)):
        before = storage._connection
        with monkeypatch.context() as patch:
            patch.setattr(write.Writing, "carry_out", lambda *_, code=code: fail(code))
            with pytest.raises(StorageError):
                await storage.commit([delta])
        await storage.reclaim(1)
        assert (storage._connection is before) is kept, "behind a lock nothing is in doubt"
    assert await storage.commit([delta]) == [Appended(1)]


async def test_a_connection_that_is_made_anew_keeps_its_journal_as_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is deleted may be there again after a power cut, and undo what was committed."""
    monkeypatch.setattr(database, "has_wal_reset_bug", lambda *_: True)
    storage = Failing(tmp_path)
    await storage.initialize()
    storage.durable = True
    assert isinstance((await storage.commit([Writer("t").admit()]))[0], Admitted)
    for connection in (storage._connection, storage._leasing):
        assert connection is not None
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("truncate",)
    await storage.close()


async def test_a_connection_that_was_opened_while_the_file_was_read_only_does_not_stay_so(
    storage: SQLiteCheckpointStorage, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(path: Path) -> sqlite3.Connection:
        return sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, isolation_level=None, check_same_thread=False)

    delta = writer.append(end=1)
    with monkeypatch.context() as patch:
        patch.setattr(store, "connect_writer", read_only)
        storage._broken = True
        for _ in range(2):
            with pytest.raises(StorageUnavailable, match="read-only"):
                await storage.commit([delta])
    assert await storage.commit([delta]) == [Appended(1)]


# -- cancellation ----------------------------------------------------------------------------------------------


class Slow(SQLiteCheckpointStorage):
    """Its COMMIT waits until it may go on."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.begun = threading.Event()
        self.go_on = threading.Event()

    def _end(self, connection: sqlite3.Connection) -> None:
        self.begun.set()
        self.go_on.wait()
        super()._end(connection)


async def test_a_cancelled_commit_still_says_what_became_of_it(tmp_path: Path) -> None:
    storage = Slow(tmp_path)
    await storage.initialize()
    known: list[object] = []

    async def commit() -> None:
        known.extend(await storage.commit([Writer("t").admit()]))
        await anyio.lowlevel.checkpoint()
        known.append("not cancelled")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(commit)
        await anyio.wait_all_tasks_blocked()
        storage.begun.wait()
        tasks.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            await anyio.wait_all_tasks_blocked()
        assert known == []
        storage.go_on.set()
    assert known == [Admitted(1, 1, 0)]
    assert (await storage.load("t")).rev == 0
    await storage.close()


async def test_closing_waits_for_the_commit_that_was_begun(tmp_path: Path) -> None:
    storage = Slow(tmp_path)
    await storage.initialize()
    known: list[object] = []

    async def commit() -> None:
        known.extend(await storage.commit([Writer("t").admit()]))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(commit)
        await anyio.wait_all_tasks_blocked()
        storage.begun.wait()
        tasks.start_soon(storage.close)
        await anyio.wait_all_tasks_blocked()
        storage.go_on.set()
    assert known == [Admitted(1, 1, 0)]
    await storage.initialize()
    assert (await storage.load("t")).rev == 0
    await storage.close()


async def test_a_read_behind_the_closing_is_refused_and_opens_nothing_again(
    storage: SQLiteCheckpointStorage, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()
    close_reading = storage._close_reading

    def slowly() -> None:
        begun.set()
        go_on.wait()
        close_reading()

    monkeypatch.setattr(storage, "_close_reading", slowly)
    refused = []

    async def read() -> None:
        with pytest.raises(StorageNotOpen) as caught:
            await storage.trace("t")
        refused.append(caught.value)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(storage.close)
        await anyio.wait_all_tasks_blocked()
        begun.wait()
        tasks.start_soon(read)
        await anyio.wait_all_tasks_blocked()
        go_on.set()
    assert len(refused) == 1
    assert storage._reading is None
    await storage.initialize()
    assert (await storage.load("t")).rev == 0


def test_one_store_serves_a_second_event_loop(tmp_path: Path) -> None:
    storage = SQLiteCheckpointStorage(tmp_path)
    writer = Writer("t")

    async def first() -> None:
        await storage.initialize()
        writer.admitted((await storage.commit([writer.admit()]))[0])

    async def second() -> None:
        assert await storage.commit([writer.append(end=1)]) == [Appended(1)]
        assert (await storage.load("t")).step == 1
        await storage.close()

    anyio.run(first)
    trio.run(second)


# -- leases ----------------------------------------------------------------------------------------------------


async def test_commits_renew_the_lease_but_not_each(
    storage: SQLiteCheckpointStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(store, "boottime", lambda: now[0])
    owner = this_process()
    storage.renew(owner)
    writer = Writer("t", owner.id)
    writer.admitted((await storage.commit([writer.admit()]))[0])

    async def beat() -> int:
        record = await storage.trace("t")
        assert record
        return record.owner_beat

    assert await beat() == 1
    await storage.commit([writer.append()])
    assert await beat() == 1
    now[0] += 1.0
    await storage.commit([writer.append()])
    assert await beat() == 2
    await storage.commit([writer.append()])
    assert await beat() == 2


# -- what is thrown into the writer's thread -------------------------------------------------------------------

PLACES = ["BEGIN IMMEDIATE", "UPDATE traces", "UPDATE transactions", "COMMIT"]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", [SystemExit, MemoryError])
@pytest.mark.parametrize("after", [False, True])
async def test_a_thread_that_is_thrown_out_of_a_transaction(
    storage: SQLiteCheckpointStorage, writer: Writer, place: str, kind: type[BaseException], after: bool
) -> None:
    """Before or after any statement: the outcome is known, nothing is left open, and the next commit works."""

    class Throwing:
        def __init__(self, connection: sqlite3.Connection) -> None:
            self._connection = connection
            self._thrown = False

        def __getattr__(self, name: str) -> Any:
            return getattr(self._connection, name)

        def execute(self, statement: str, *args: Any) -> Any:
            now = statement.lstrip().startswith(place) and not self._thrown
            self._thrown = self._thrown or now
            if now and not after:
                raise kind
            done = self._connection.execute(statement, *args)
            if now:
                raise kind
            return done

    storage._connection = Throwing(storage._connection)  # type: ignore[assignment,arg-type]
    write = writer.append(body=b"1")
    told: list[object] = []
    with anyio.fail_after(20):
        try:
            told = list(await storage.commit([write]))
        except (StorageError, MemoryError) as error:
            told = [error]
        snapshot = await storage.load("t")
        if told == [Appended(1)]:
            assert (place, snapshot.rev) == ("COMMIT", 1)
        else:
            assert snapshot.rev == 0
            assert await storage.commit([write]) == [Appended(1)]
    assert (await storage.load("t")).rev == 1
