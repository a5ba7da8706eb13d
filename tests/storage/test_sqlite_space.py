"""What pruning and deleting leave, how much they do at a time, and that the disk comes back."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path

import pytest

from tests.storage.deltas import Item, Writer
from tinyllm.storage.contract import Delete, Label, Leave, Prune, Pruned
from tinyllm.storage.sqlite import SQLiteCheckpointStorage, prune

pytestmark = pytest.mark.anyio

_TABLES = ("traces", "graphs", "messages", "activations", "arrivals", "variables", "steps", "checkpoints", "commands")


@pytest.fixture
async def storage(tmp_path: Path, anyio_backend: str) -> AsyncIterator[SQLiteCheckpointStorage]:
    opened = SQLiteCheckpointStorage(tmp_path)
    await opened.initialize()
    yield opened
    await opened.close()


def rows(storage: SQLiteCheckpointStorage) -> dict[str, int]:
    assert storage._connection is not None
    return {table: storage._connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in _TABLES}


async def run(storage: SQLiteCheckpointStorage, writer: Writer, steps: int, **what: object) -> Writer:
    """Admit `writer` and let it finish `steps` activations, one after the other."""
    if not writer.key:
        writer.admitted((await storage.commit([writer.admit()]))[0])
    what = {"plan": ["a"]} | what
    await storage.commit([writer.append(end=max(writer.live), **what) for _ in range(steps)])
    return writer


@pytest.mark.parametrize("kept", range(1, 9))
@pytest.mark.parametrize("before", range(1, 4))
async def test_labels_split_what_is_dropped_into_runs(storage: SQLiteCheckpointStorage, kept: int, before: int) -> None:
    writer = await run(storage, Writer("t"), 20)
    labels = [Label(writer.key, "t", rev, f"label {rev}") for rev in range(before + 1, before + 1 + kept)]
    await storage.commit(labels)
    dropped = 20 - 5 - kept
    assert await storage.commit([Prune(writer.key, 5, 64)]) == [Pruned(dropped + 1 - 1)]
    assert len(await storage.checkpoints("t")) == 21 - dropped


async def test_a_pruned_trace_keeps_no_more_than_its_checkpoints_see(storage: SQLiteCheckpointStorage) -> None:
    writer = await run(storage, Writer("t"), 300, history=False, set=[("x", b'"%s"' % (b"x" * 100))])
    assert await storage.commit([Prune(writer.key, 10, 200)]) == [Pruned(200)]
    assert await storage.commit([Prune(writer.key, 10, 200)]) == [Pruned(90)]
    assert await storage.commit([Prune(writer.key, 10, 200)]) == [Pruned(0)]
    # The first and the newest ten: the activation each planned, what it reads, and the value it set.
    assert rows(storage) == {
        "traces": 1,
        "graphs": 1,
        "messages": 11,
        "activations": 11,
        "arrivals": 0,
        "variables": 10,
        "steps": 300,
        "checkpoints": 11,
        "commands": 0,
    }


async def test_pruning_again_costs_what_is_new_and_not_what_there_is(storage: SQLiteCheckpointStorage) -> None:
    """Ten thousand variables that nobody changes must not be looked at whenever a checkpoint goes."""
    writer = await run(storage, Writer("t"), 1, set=[(f"k{n}", b"1") for n in range(3000)])
    first = [await pruning(storage, writer) for _ in range(8)]
    assert max(first[2:]) <= min(first[2:]) * 1.5
    assert max(first[2:]) < 300


async def pruning(storage: SQLiteCheckpointStorage, writer: Writer) -> int:
    """Let 20 checkpoints come and 20 go; returns for how many hundred instructions of SQLite's machine they went."""
    await run(storage, writer, 20)
    assert storage._connection is not None
    counted = 0

    def count() -> None:
        nonlocal counted
        counted += 1

    storage._connection.set_progress_handler(count, 100)
    await storage.commit([Prune(writer.key, 10)])
    storage._connection.set_progress_handler(None, 100)
    return counted


async def test_pruning_a_history_costs_what_leaves_it_and_not_what_stays(storage: SQLiteCheckpointStorage) -> None:
    """Neither a wide window, nor what a wide frontier still reads, must be looked at whenever a checkpoint goes."""
    writer = await run(storage, Writer("t", window=1000), 1000, plan=["a", "slow"], history=False)
    await run(storage, writer, 1000)
    first = [await pruning(storage, writer) for _ in range(8)]
    assert max(first[2:]) <= min(first[2:]) * 1.5
    assert max(first[2:]) < 300
    assert len(await storage.messages("t", limit=2000)) == 1000


async def test_pruning_a_window_leaves_an_entry_only_for_what_it_holds(storage: SQLiteCheckpointStorage) -> None:
    writer = await run(storage, Writer("t", window=5), 100)
    other = await run(storage, Writer("u"), 10)
    await storage.commit([Prune(writer.key, 1, 200), Prune(other.key, 1)])
    assert storage._connection is not None
    held = "SELECT id & 0xffffffff, held - id FROM messages INDEXED BY messages_held WHERE held IS NOT NULL"
    assert storage._connection.execute(held).fetchall() == [(seq, 0) for seq in (1, 97, 98, 99, 100, 101)]


async def test_labelled_checkpoints_stay(storage: SQLiteCheckpointStorage) -> None:
    writer = await run(storage, Writer("t"), 30, set=[("x", b"1")])
    before = await storage.load("t", 7)
    await storage.commit([Label(writer.key, "t", 7, "good"), Prune(writer.key, 5)])
    assert [point.rev for point in await storage.checkpoints("t")] == [30, 29, 28, 27, 26, 7, 0]
    after = await storage.load("t", 7)
    assert (after.frontier, after.messages, after.variables) == (before.frontier, before.messages, before.variables)


async def test_a_pinned_checkpoint_stays_until_its_last_fork_goes(storage: SQLiteCheckpointStorage) -> None:
    writer = await run(storage, Writer("t"), 10, history=False, set=[("x", b"[]"), ("x", Item(b"1"))])
    children = []
    for name in ("one", "two"):
        child, fork = writer.fork(await storage.load("t", 4), name)
        children.append(child.admitted((await storage.commit([fork]))[0]))
    seen = await storage.load("one")
    await run(storage, children[0], 5, history=False)
    await storage.commit([Prune(writer.key, 1), Prune(children[0].key, 1)])
    assert [point.rev for point in await storage.checkpoints("t")] == [10, 4, 0]
    again = await storage.load("one", seen.rev)
    assert (again.frontier, again.messages, again.variables) == (seen.frontier, seen.messages, seen.variables)
    for child, left in zip(children, ([10, 4, 0], [10, 0]), strict=True):
        await storage.commit([Delete(child.key), Prune(writer.key, 1)])
        assert [point.rev for point in await storage.checkpoints("t")] == left


async def test_a_deleted_parent_gives_its_id_away_and_goes_with_its_last_fork(
    storage: SQLiteCheckpointStorage,
) -> None:
    writer = await run(storage, Writer("t"), 10)
    child, fork = writer.fork(await storage.load("t", 4), "child")
    child.admitted((await storage.commit([fork]))[0])
    grandchild, fork = child.fork(await storage.load("child"), "grandchild")
    grandchild.admitted((await storage.commit([fork]))[0])
    before = [row.body for row in await storage.messages("grandchild")]
    await storage.commit([Delete(writer.key), Delete(child.key)])
    assert await storage.trace("t") is None
    assert [record.trace_id for record in await storage.traces()] == ["grandchild"]
    assert rows(storage)["steps"] == 4  # what came after the fork is gone
    again = await run(storage, Writer("t"), 1)
    assert [row.body for row in await storage.messages("grandchild")] == before
    assert [row.step for row in await storage.steps("grandchild")] == [1, 2, 3, 4]
    record = await storage.trace("grandchild")
    assert record is not None
    assert (record.parent, record.parent_step) == (None, 4)
    await storage.commit([Delete(grandchild.key), Delete(again.key)])
    assert set(rows(storage).values()) == {0}


async def test_a_long_trace_is_deleted_in_slices(
    storage: SQLiteCheckpointStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prune, "_SLICE_SECONDS", 0.0)
    writer = await run(storage, Writer("t"), 1000)
    await storage.commit([Delete(writer.key)])
    assert await storage.traces() == []
    left = [sum(rows(storage).values())]
    while await storage.reclaim(1000):
        left.append(sum(rows(storage).values()))
    assert left[0] > 3000
    assert all(before - after <= prune._SLICE_ROWS for before, after in pairwise(left))
    assert sum(rows(storage).values()) == 0


async def test_what_was_left_of_a_deletion_is_found_after_opening_again(
    storage: SQLiteCheckpointStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prune, "_SLICE_SECONDS", 0.0)
    writer = await run(storage, Writer("t"), 300)
    answers = [Leave(writer.key, "t", "answer", b"%016d" % number, "why", b"1") for number in range(300)]
    await storage.commit([*answers, Delete(writer.key)])
    await storage.close()
    await storage.initialize()
    assert sum(rows(storage).values()) > 500
    assert await storage.commands(trace=writer.key) == []
    while await storage.reclaim(1000):
        pass
    assert sum(rows(storage).values()) == 0


async def test_freed_pages_go_back_to_the_file_system(storage: SQLiteCheckpointStorage, tmp_path: Path) -> None:
    writer = await run(storage, Writer("t"), 200, body=os.urandom(100_000))

    def size() -> int:
        return sum(path.stat().st_size for path in tmp_path.glob("tinyllm.db*"))

    await storage.close()
    await storage.initialize()
    full = size()
    await storage.commit([Delete(writer.key)])
    left = [await storage.reclaim(100)]
    while left[-1]:
        left.append(await storage.reclaim(100))
    assert len(left) > 3  # a bounded amount at a time
    assert left == sorted(left, reverse=True)
    assert size() < full / 20


async def test_a_definition_goes_with_the_last_trace_that_has_it(storage: SQLiteCheckpointStorage) -> None:
    writers = [Writer(f"t{number}") for number in range(3)]
    for writer, outcome in zip(
        writers, await storage.commit([writer.admit(definition=b"[1]") for writer in writers]), strict=True
    ):
        writer.admitted(outcome)
    assert rows(storage)["graphs"] == 1
    await storage.commit([writers[0].acquire("o", definition=b"[2]")])
    assert rows(storage)["graphs"] == 2
    await storage.commit([writers[1].acquire("o", definition=b"[2]"), writers[2].acquire("o", definition=b"[2]")])
    assert rows(storage)["graphs"] == 1
    assert {await storage.definition(writer.trace_id) for writer in writers} == {b"[2]"}
