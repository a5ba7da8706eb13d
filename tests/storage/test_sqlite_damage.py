"""Every changed, moved or missing row is noticed, and said with trace and step."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import attrs
import pytest

from tests.storage.deltas import DELETED, Item, Writer
from tests.storage.test_sqlite_migration import writer_of
from tinyllm.errors import CheckpointDamaged, TraceNotFound
from tinyllm.storage.contract import Delete, Label, Leave, Prune, Pruned, Snapshot
from tinyllm.storage.framing import COMPRESS_ABOVE
from tinyllm.storage.owners import this_process
from tinyllm.storage.sqlite import SQLiteCheckpointStorage
from tinyllm.storage.sqlite.health import examine
from tinyllm.storage.sqlite.library import sqlite3
from tinyllm.storage.sqlite.load import Loader

pytestmark = pytest.mark.anyio

BIG = b'{"content": "%s"}' % (b"x" * COMPRESS_ABOVE)


@pytest.fixture
async def storage(tmp_path: Path, anyio_backend: str) -> AsyncIterator[SQLiteCheckpointStorage]:
    """One trace, `t`: four messages of history, three of them read by the frontier, and two variables."""
    opened = SQLiteCheckpointStorage(tmp_path)
    await opened.initialize()
    writer = Writer("t")
    writer.admitted((await opened.commit([writer.admit(plan=["a", "a", "b"], definition=BIG)]))[0])
    await opened.commit(
        [
            writer.append(end=1, plan=["c"], arrive=["join"], body=BIG, set=[("list", b"[]"), ("x", b"1")]),
            writer.append(end=2, plan=["c"], arrive=["join"], set=[("list", Item(b"1"))], body=b'{"second": true}'),
            writer.append(body=b'"a note"', change=[(3, "failed")], set=[("list", Item(b"2"))]),
        ]
    )
    yield opened
    await opened.close()


def damage(storage: SQLiteCheckpointStorage, statement: str) -> None:
    connection = sqlite3.connect(storage._path, isolation_level=None)
    try:
        assert connection.execute(statement).rowcount == 1
    finally:
        connection.close()


async def test_undamaged_it_is_whole(storage: SQLiteCheckpointStorage) -> None:
    snapshot = await storage.load("t")
    assert isinstance(snapshot, Snapshot)
    assert {message.body for message in snapshot.messages.values()} == {b"{}", BIG, b'{"second": true}'}
    assert len(await storage.messages("t")) == 4
    assert await storage.definition("t") == BIG
    assert len(snapshot.variables["list"]) == 3
    assert len(snapshot.arrivals) == 2
    assert [row.error for row in snapshot.frontier if row.state == "failed"] == [b"error"]


KEY = 1 << 32


@pytest.mark.parametrize(
    ("statement", "what"),
    [
        (
            f"UPDATE messages SET body = '{{\"second\": false}}' WHERE id = {KEY | 3}",
            "message 3 does not have the bytes",
        ),
        (f"UPDATE messages SET body = x'0164' WHERE id = {KEY | 2}", "message 2 cannot be decoded"),
        (
            f"UPDATE messages SET body = CAST(substr(body, 1, length(body) - 1) AS BLOB) WHERE id = {KEY | 2}",
            "message 2 cannot be decoded",
        ),
        (f"UPDATE messages SET node = 'b' WHERE id = {KEY | 3}", "message 3 does not have the bytes"),
        (f"UPDATE messages SET id = {KEY | 9} WHERE id = {KEY | 3}", "messages of the history|message 3 is missing"),
        (f"DELETE FROM messages WHERE id = {KEY | 3}", "message 3 is missing"),
        (f"DELETE FROM messages WHERE id = {KEY | 4}", "it has 3 messages of the history where 4 were written"),
        (f"UPDATE variables SET body = '7' WHERE id = {KEY | 2}", "variable 'x', change 2 does not have the bytes"),
        (f"UPDATE variables SET key = 'y' WHERE id = {KEY | 2}", "variable 'y', change 2 does not have the bytes"),
        (f"DELETE FROM variables WHERE id = {KEY | 2}", "it has 1 variables where 2 were written"),
        (f"DELETE FROM variables WHERE id = {KEY | 1}", "the start of variable 'list' is missing"),
        (f"DELETE FROM activations WHERE id = {KEY | 3}", "it has 3 activations of the frontier where 4 were written"),
        (
            f"UPDATE activations SET done_rev = 2 WHERE id = {KEY | 3}",
            "it has 3 activations of the frontier where 4 were written",
        ),
        (
            f"UPDATE activations SET error = x'02' WHERE id = {KEY | 3}",
            "activation 3, of node 'b', does not say what was written",
        ),
        (
            f"UPDATE activations SET progress = x'02' WHERE id = {KEY | 3}",
            "activation 3, of node 'b', does not say what was written",
        ),
        (
            f"UPDATE activations SET asked = x'02' WHERE id = {KEY | 3}",
            "activation 3, of node 'b', does not say what was written",
        ),
        (f"DELETE FROM arrivals WHERE id = {KEY | 2}", "it has 1 arrivals at joins where 2 were written"),
        (
            f"DELETE FROM checkpoints WHERE id = {KEY | 3}",
            "its newest checkpoint is of rev 2, step 2, and rev 3",
        ),
    ],
)
async def test_a_damaged_row_is_reported(storage: SQLiteCheckpointStorage, statement: str, what: str) -> None:
    damage(storage, statement)
    with pytest.raises(CheckpointDamaged, match=what) as caught:
        await storage.load("t")
    assert (caught.value.trace_id, caught.value.step) == ("t", 2)


async def test_a_state_before_the_damage_is_still_good(storage: SQLiteCheckpointStorage) -> None:
    before = await storage.load("t", 1)
    damage(storage, f"UPDATE messages SET body = '0' WHERE id = {KEY | 3}")
    damage(storage, f"DELETE FROM variables WHERE id = {KEY | 4}")
    assert await storage.load("t", 1) == before


@pytest.mark.parametrize("seq", [1, 2, 3, 4])
async def test_a_message_missing_from_the_history_is_reported(storage: SQLiteCheckpointStorage, seq: int) -> None:
    damage(storage, f"DELETE FROM messages WHERE id = {KEY | seq}")
    with pytest.raises(CheckpointDamaged, match=f"message {seq} of the history is missing"):
        await storage.messages("t")
    for before in range(1, seq):  # page by page: only the one that would begin with it, or end at it
        assert [row.seq for row in await storage.messages("t", after=before - 1, limit=1)] == [before]
    with pytest.raises(CheckpointDamaged, match=f"message {seq} of the history is missing"):
        await storage.messages("t", after=seq - 1, limit=1)


@pytest.mark.parametrize("seq", [5, 6, 7])
async def test_a_message_missing_from_a_window_is_reported(storage: SQLiteCheckpointStorage, seq: int) -> None:
    writer = Writer("w", window=3)
    writer.admitted((await storage.commit([writer.admit()]))[0])
    await storage.commit([writer.append(end=step, plan=["a"]) for step in range(1, 7)])
    await storage.commit([Prune(writer.key, 1)])
    # What was pruned before it is no damage; nor is what the window does not hold.
    assert [row.seq for row in await storage.messages("w")] == [5, 6, 7]
    damage(storage, f"DELETE FROM messages WHERE id = {writer.key << 32 | 1}")
    assert [row.seq for row in await storage.messages("w", after=1)] == [5, 6, 7]
    damage(storage, f"DELETE FROM messages WHERE id = {writer.key << 32 | seq}")
    for after in (0, 2, seq - 1):
        with pytest.raises(CheckpointDamaged, match=f"message {seq} of the history is missing"):
            await storage.messages("w", after=after)
    for after in range(4, seq - 1):
        assert [row.seq for row in await storage.messages("w", after=after, limit=1)] == [after + 1]
    if seq == 7:
        with pytest.raises(CheckpointDamaged, match="it has 6 messages of the history where 7 were written"):
            await storage.load("w")


async def test_a_damaged_message_of_a_window_is_reported(storage: SQLiteCheckpointStorage) -> None:
    writer = Writer("w", window=2)
    writer.admitted((await storage.commit([writer.admit()]))[0])
    await storage.commit([writer.append(end=step, plan=["a"]) for step in range(1, 4)])
    damage(storage, f"UPDATE messages SET history = 2 WHERE id = {writer.key << 32 | 1}")
    assert len(await storage.messages("w")) == 2
    damage(storage, f"UPDATE messages SET body = '0' WHERE id = {writer.key << 32 | 3}")
    with pytest.raises(CheckpointDamaged, match="message 3 does not have the bytes"):
        await storage.messages("w")


async def test_a_damaged_command_is_reported(storage: SQLiteCheckpointStorage) -> None:
    await storage.commit([Leave(1, "t", "answer", b"a" * 16, "why", b"1")])
    damage(storage, "UPDATE commands SET body = x'02'")
    with pytest.raises(CheckpointDamaged, match="'t' is damaged: the answer to 'why' does not have the bytes"):
        await storage.commands(trace=1)


async def test_a_damaged_definition_is_reported(storage: SQLiteCheckpointStorage) -> None:
    damage(storage, "UPDATE graphs SET body = '{}'")
    with pytest.raises(CheckpointDamaged, match="the definition of its graph does not have the bytes"):
        await storage.definition("t")
    damage(storage, "DELETE FROM graphs")
    with pytest.raises(CheckpointDamaged, match="the definition of its graph is missing"):
        await storage.definition("t")


async def test_a_trace_without_a_checkpoint_or_a_parent_is_reported(storage: SQLiteCheckpointStorage) -> None:
    child, fork = Writer("t").fork(await storage.load("t"), "child")
    fork = type(fork)(parent=1, rev=3, trace_id="child", owner=None, first=fork.first)
    child.admitted((await storage.commit([fork]))[0])
    assert len(await storage.messages("child")) == 4
    damage(storage, "DELETE FROM traces WHERE key = 1")
    with pytest.raises(CheckpointDamaged, match="the trace that it was forked from is missing"):
        await storage.load("child")
    damage(storage, f"DELETE FROM checkpoints WHERE id = {2 << 32 | 4}")
    with pytest.raises(CheckpointDamaged, match="its newest checkpoint is missing"):
        await storage.load("child")


NOT_SEALED = {
    ("traces", "updated_at"),  # what lists are ordered by
    ("traces", "epoch"),  # who has another one can write nothing, and says so
    ("traces", "owner"),  # the epoch decides
    ("activations", "done_rev"),  # of what ended; what lives is counted, and what changes that is noticed there
    ("messages", "pruned"),  # how many readers are gone; a message that goes too early is missed by those left
    ("messages", "held"),
    ("variables", "trace"),  # the row's id begins with it; it is for an index
    ("checkpoints", "id"),  # an older one that is gone might have been pruned; the newest is missed
    ("commands", "id"),  # their order
    ("commands", "created_at"),
    ("commands", "consumed"),
}
"""What a changed column of which makes no answer a wrong one, or shows elsewhere."""


def everything(read: Loader, trace_id: str) -> object:
    revs = [checkpoint.rev for checkpoint in read.checkpoints(trace_id, 100, 0)]
    return (
        # (When and where it is executed, and by whom, makes no difference to what it computes.)
        attrs.evolve(
            attrs.evolve(read.found(trace_id), priority=0, not_before=None, apart=False),
            updated_at=0.0,
            epoch=0,
            owner=None,
            owner_alive=None,
        ),
        read.definition(trace_id),
        [attrs.asdict(read.load(trace_id, rev)) | {"record": None} for rev in (None, *revs)],
        [repr(checkpoint) for checkpoint in read.checkpoints(trace_id, 100, 0)],
        read.messages(trace_id, None, 0, 1000),
        read.steps(trace_id, 0, 1000),
        [attrs.evolve(command, id=0, created_at=0.0) for command in read.commands(None, read.found(trace_id).trace)],
    )


def other(value: object) -> list[object]:
    match value:
        case int() | float():
            return [value + 1, -value - 1, None]
        case str():
            return [value + "x", value[1:], None]
        case bytes():
            return [value + b"x", value[1:], None]
        case _:
            return [0, 1, "x"]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_no_changed_column_makes_a_wrong_answer(storage: SQLiteCheckpointStorage) -> None:
    """Every column of every row of a trace, of the one that it was forked from, and of what was left for it."""
    await storage.commit([Label(1, "t", 1, "good"), Leave(1, "t", "answer", b"a" * 16, "why", b"1")])
    before = await storage.load("t")
    child, fork = writer_of(before).fork(before, "child")
    child.admitted((await storage.commit([fork]))[0])
    writer = writer_of(await storage.load("child"))
    join = writer.rounds["join"]
    await storage.commit(
        [
            writer.append(fire=["join"], set=[("list", Item(b"3")), ("x", DELETED)]),
            writer.append(end=join, plan=["c"], set=[("y", b"1")], task="more", status="failed", error=b"it failed"),
            Leave(writer.key, "child", "answer", b"b" * 16, "who", b"2"),
        ]
    )
    connection = sqlite3.connect(storage._path, isolation_level=None)
    connection.execute("BEGIN")
    for name in ("transactions", "owners", "_sqlite_migrations"):
        connection.execute(f"DELETE FROM {name}")
    read = Loader(connection, storage._directory, storage)
    truth = everything(read, "child")
    tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
    changed = missed = 0
    for table in tables:
        columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
        for row in connection.execute(f"SELECT rowid, * FROM {table}").fetchall():
            for column, value in zip(columns, row[1:], strict=True):
                for new in other(value):
                    if (table, column) in NOT_SEALED:
                        continue
                    connection.execute("SAVEPOINT undamaged")
                    try:
                        connection.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", (new, row[0]))
                        changed += 1
                        assert everything(read, "child") == truth, (table, column, row, new)
                    except (CheckpointDamaged, TraceNotFound):
                        missed += 1
                    except sqlite3.IntegrityError:
                        changed -= 1  # it cannot be stored
                    finally:
                        connection.execute("ROLLBACK TO undamaged")
    connection.close()
    assert missed > changed / 3


# -- what is damaged is not acted upon -------------------------------------------------------------------------


async def test_pruning_stops_at_a_damaged_checkpoint(storage: SQLiteCheckpointStorage) -> None:
    writer = Writer("w", window=3)
    writer.admitted((await storage.commit([writer.admit()]))[0])
    await storage.commit([writer.append(end=step, plan=["a"]) for step in range(1, 9)])
    before = await storage.load("w")
    damage(storage, f"UPDATE checkpoints SET messages = messages + 4096 WHERE id = {writer.key << 32 | 4}")
    assert await storage.commit([Prune(writer.key, 1)]) == [Pruned(0)]  # what it sees is not known
    assert await storage.load("w") == before
    assert len(await storage.messages("w")) == 3


async def test_a_pin_that_is_lost_loses_nothing(storage: SQLiteCheckpointStorage) -> None:
    before = await storage.load("t", 1)
    parent = writer_of(before)
    child, fork = parent.fork(before, "child")
    child.admitted((await storage.commit([fork]))[0])
    shared = await storage.load("child")
    damage(storage, f"UPDATE checkpoints SET pins = 0 WHERE id = {KEY | 1}")
    await storage.commit([Label(1, "t", 1, "a"), Label(1, "t", 1, None), Prune(1, 1)])
    assert await storage.load("child") == shared
    await storage.commit([Delete(1)])
    assert (await storage.load("child")).frontier == shared.frontier


async def test_one_damaged_trace_hides_no_other(storage: SQLiteCheckpointStorage) -> None:
    writer = Writer("w")
    writer.admitted((await storage.commit([writer.admit()]))[0])
    damage(storage, "UPDATE traces SET graph_version = CAST(x'b1b2' AS TEXT) WHERE trace_id = 't'")
    assert {record.trace_id for record in await storage.traces()} == {"t", "w"}
    assert (await storage.load("w")).step == 0
    with pytest.raises(CheckpointDamaged, match="'t' is damaged"):
        await storage.load("t")
    found = examine(storage._directory)
    assert [each.trace_id for each in found.damaged] == ["t"]
    assert found.intact == ("w",)


async def test_one_damaged_command_keeps_no_other_from_being_heard(
    storage: SQLiteCheckpointStorage, caplog: pytest.LogCaptureFixture
) -> None:
    owner = this_process()
    storage.renew(owner)
    for name in ("one", "two"):
        writer = Writer(name, owner=owner.id)
        writer.admitted((await storage.commit([writer.admit()]))[0])
        await storage.commit([Leave(writer.key, name, "cancel")])
    damage(storage, "UPDATE commands SET kind = 'pause' WHERE id = 1")
    for _ in range(2):
        assert [command.kind for command in await storage.commands(owner=owner.id)] == ["cancel"]
    assert [record.getMessage() for record in caplog.records] == [
        f"{storage.name}, trace 'one': pause (command 1) does not have the bytes that were written"
    ]
    assert [each.trace_id for each in examine(storage._directory).damaged] == ["one"]
    storage.retire(owner)
