"""How an older database becomes one of this version, and what is done with the traces in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.storage.deltas import Writer
from tinyllm.storage.contract import (
    Acquired,
    Appended,
    CheckpointStorage,
    Claim,
    Claimed,
    Done,
    Label,
    Leave,
    Left,
    Prune,
    Pruned,
    Snapshot,
    Wanted,
    sum_of_changes,
)
from tinyllm.storage.sqlite import SQLiteCheckpointStorage
from tinyllm.storage.sqlite.health import examine
from tinyllm.storage.sqlite.library import sqlite3
from tinyllm.storage.sqlite.schema import APPLICATION_ID, VERSION

pytestmark = pytest.mark.anyio

WRITTEN = {version: Path(__file__).with_name(f"version_{version}.sql") for version in (1, 2, 3)}
"""What older versions wrote: trace `t`, which failed after two steps, and its fork `child`, after the first; and since
the second version `w`, whose history has a window."""


def connected(directory: Path) -> sqlite3.Connection:
    return sqlite3.connect(directory / "tinyllm.db", isolation_level=None)


@pytest.fixture(params=WRITTEN)
def version(request: pytest.FixtureRequest) -> int:
    number: int = request.param
    return number


@pytest.fixture
def old(tmp_path: Path, version: int) -> Path:
    """A directory with a database of that version."""
    directory = tmp_path / "old"
    directory.mkdir()
    connection = connected(directory)
    connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.executescript(WRITTEN[version].read_text(encoding="utf-8"))
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {version}")
    connection.close()
    return directory


async def opened(directory: Path) -> SQLiteCheckpointStorage:
    storage = SQLiteCheckpointStorage(directory)
    await storage.initialize()
    return storage


def schema(directory: Path) -> dict[str, object]:
    """All columns, with their types and defaults, and all indexes, with what they are on."""
    connection = connected(directory)
    names = "SELECT type, name FROM sqlite_schema WHERE name NOT LIKE 'sqlite_%'"
    found: dict[str, object] = {
        f"{kind} {name}": connection.execute(f"PRAGMA {kind}_xinfo('{name}')").fetchall()
        for kind, name in connection.execute(names).fetchall()
    }
    found["sql"] = sorted(connection.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'index'").fetchall())
    found["version"] = connection.execute("PRAGMA user_version").fetchone()
    connection.close()
    return found


def writer_of(snapshot: Snapshot) -> Writer:
    """One that goes on from `snapshot`."""
    writer = Writer(snapshot.record.trace_id)
    writer.key, writer.epoch = snapshot.record.trace, snapshot.record.epoch
    writer.rev, writer.step, writer.marks = snapshot.rev, snapshot.step, snapshot.marks
    writer.history = snapshot.counts.messages
    writer.live = {row.seq: row for row in snapshot.frontier}
    writer.rounds = {row.node: row.seq for row in snapshot.frontier if row.state == "buffered"}
    writer.arrived.update(row.activation for row in snapshot.arrivals)
    writer.bases = {key: rows[0].seq for key, rows in snapshot.variables.items()}
    writer.changes = {key: sum_of_changes([rows]) for key, rows in snapshot.variables.items()}
    return writer


async def test_a_migrated_schema_equals_a_fresh_one(old: Path, tmp_path: Path) -> None:
    await (await opened(old)).close()
    await (await opened(tmp_path / "new")).close()
    assert schema(old) == schema(tmp_path / "new")
    assert schema(old)["version"] == (VERSION,)


@pytest.mark.parametrize("version", [2, 3], indirect=True)
async def test_a_trace_of_the_second_or_third_version_is_read(old: Path) -> None:
    storage = await opened(old)
    failed = await storage.load("t")
    assert failed.record.error == b'{"type": "E", "message": "it failed"}'
    assert next((row.node, row.state, row.progress) for row in failed.frontier) == ("b", "failed", b"[1]")
    assert [(row.label, row.rev) for row in await storage.checkpoints("t") if row.label] == [("good", 1)]
    assert [row.status for row in await storage.steps("t")] == ["odd", None]
    child = await storage.load("child")
    assert (child.record.last_task, child.generation, list(child.variables)) == ("more", 2, ["list"])
    assert [row.state for row in child.frontier] == ["planned"] * 4
    assert [(left.kind, left.name, left.body) for left in await storage.commands(trace=child.record.trace)] == [
        ("answer", "why", b"1")
    ]
    assert [row.seq for row in await storage.messages("w")] == [5, 6]
    assert [row.rev for row in await storage.checkpoints("w")] == [5, 4, 0]
    await storage.close()
    assert examine(old).sound


@pytest.mark.parametrize("version", [1], indirect=True)
async def test_a_trace_of_the_first_version_is_read(old: Path) -> None:
    storage = await opened(old)
    assert {record.trace_id for record in await storage.traces()} == {"t", "child"}
    snapshot = await storage.load("t")
    record = snapshot.record
    assert (record.status, record.task_digest, record.last_task, record.history) == ("failed", "digest", "digest", None)
    assert [(row.node, row.state, row.attempts, row.tries) for row in snapshot.frontier] == [
        ("b", "failed", 1, 0),
        ("c", "planned", 0, 0),
        ("join", "buffered", 0, 0),
        ("c", "planned", 0, 0),
    ]
    assert {(row.due, row.progress, row.asked) for row in snapshot.frontier} == {(None, None, None)}
    assert [row.body for row in snapshot.variables["list"]] == [b"[]", b"1"]
    assert (snapshot.generation, snapshot.generation_step, snapshot.elapsed) == (1, 0, 0.0)
    assert (snapshot.tokens_in, snapshot.tokens_out) == (0, 0)
    assert [row.status for row in await storage.steps("t")] == [None, None]
    assert [(row.rev, row.message_count) for row in await storage.checkpoints("t")] == [(3, 3), (2, 3), (1, 2), (0, 1)]
    for trace_id, bodies in (("t", [b'"task"', b'"one"', b'"two"']), ("child", [b'"task"', b'"one"'])):
        assert [row.body for row in await storage.messages(trace_id)] == bodies
    await storage.close()


@pytest.mark.parametrize("trace_id", ["t", "child"])
async def test_a_trace_of_an_older_version_goes_on(old: Path, version: int, trace_id: str) -> None:
    storage = await opened(old)
    writer = writer_of(await storage.load(trace_id))
    rev, history = writer.rev, writer.history
    assert await storage.commit([writer.acquire("o")]) == [Acquired(writer.epoch + 1)]
    writer.epoch += 1
    (left,) = await storage.commit([Leave(writer.key, trace_id, "pause")])
    assert isinstance(left, Left)
    seq = min(writer.live)
    writes = [
        writer.append(change=[(seq, "paused")], body=None, consumed=[left.command], task="next"),
        writer.append(end=seq, plan=["a"], set=[("x", b"2")]),
    ]
    assert await storage.commit(writes) == [Appended(rev + 1), Appended(rev + 2)]
    await check(storage, writer)
    assert {command.kind for command in await storage.commands(trace=writer.key)} <= {"answer"}  # left before
    assert await storage.commit([Label(writer.key, trace_id, rev + 1, "good"), Prune(writer.key, 1)]) == [
        Done(),
        Pruned(2 if trace_id == "t" else min(version, 2) - 1),  # rev 1 of `t` is pinned
    ]
    await check(storage, writer)
    assert [row.seq for row in await storage.messages(trace_id)] == list(range(1, history + 2))
    child, fork = writer.fork(await storage.load(trace_id), "grandchild")
    child.admitted((await storage.commit([fork]))[0])
    await check(storage, child)
    assert (await storage.load("grandchild")).record.last_task == "next"
    await storage.close()


async def check(storage: CheckpointStorage, writer: Writer) -> None:
    snapshot = await storage.load(writer.trace_id)
    assert (snapshot.rev, snapshot.step, snapshot.marks) == (writer.rev, writer.step, writer.marks)
    assert snapshot.frontier == tuple(writer.live[seq] for seq in sorted(writer.live))
    assert snapshot.generation == writer.generation


@pytest.mark.parametrize("version", [3], indirect=True)
async def test_what_was_damaged_before_stays_so(old: Path) -> None:
    connection = connected(old)
    assert connection.execute("UPDATE traces SET task_digest = 'another' WHERE trace_id = 'child'").rowcount == 1
    assert connection.execute("UPDATE steps SET node = 'z' WHERE id >> 32 = 3 AND node = 'a'").rowcount == 5
    connection.close()
    await (await opened(old)).close()
    assert sorted(damaged.trace_id for damaged in examine(old).damaged) == ["child", "w"]


async def test_traces_of_an_older_version_that_were_interrupted_wait_to_be_claimed(old: Path, version: int) -> None:
    storage = await opened(old)
    (claimed,) = await storage.commit([Claim((Wanted("g", "o"),), 10)])
    assert isinstance(claimed, Claimed)
    assert [held.trace_id for held in claimed.traces] == ["child", "w"][: min(version, 2)]
    for held in claimed.traces:
        record = (await storage.load(held.trace_id)).record
        assert (record.priority, record.not_before, record.apart, record.deaths) == (0, None, False, None)
    await storage.close()


@pytest.mark.parametrize("version", [1], indirect=True)
async def test_a_migration_that_fails_leaves_the_older_database(old: Path) -> None:
    connection = connected(old)
    connection.execute("CREATE TABLE commands (x)")
    connection.close()
    before = schema(old)
    with pytest.raises(Exception, match="commands already exists"):
        await opened(old)
    assert schema(old) == before


@pytest.mark.parametrize("version", [2], indirect=True)
async def test_a_process_of_an_older_version_that_has_it_open_writes_nothing_more(old: Path) -> None:
    connection = connected(old)  # what such a process does in each transaction
    statement = "UPDATE transactions SET token = 1"
    assert connection.execute(statement).rowcount == 1
    await (await opened(old)).close()
    with pytest.raises(sqlite3.OperationalError, match="no such column"):
        connection.execute(statement)
    connection.close()
