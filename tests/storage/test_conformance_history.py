"""What every store promises about a history with a window, and about what a trace counts, on every backend."""

from __future__ import annotations

import attrs
import pytest

from tests.storage.backends import admit, census, commit_one, found, run_steps
from tests.storage.deltas import Writer, merge
from tinyllm.errors import OwnershipLost
from tinyllm.storage.contract import Append, Appended, CheckpointStorage, Delete, Drop, Label, Prune, Pruned

pytestmark = pytest.mark.anyio


async def admit_window(storage: CheckpointStorage, window: int | None, steps: int = 0) -> Writer:
    """A trace `t` whose history has `window`, and in it the messages `0`, `1`, ... up to that of `steps`."""
    writer = Writer("t", window=window)
    writer.admitted(await commit_one(storage, writer.admit(body=b"0")))
    for step in range(1, steps + 1):
        await commit_one(storage, writer.append(end=min(writer.live), plan=["a"], body=b"%d" % step))
    return writer


async def said(storage: CheckpointStorage, rev: int | None = None, trace_id: str = "t") -> list[int]:
    return [int(row.body) for row in await storage.messages(trace_id, rev=rev)]


async def message_rows(storage: CheckpointStorage, writer: Writer) -> list[int]:
    return sorted((await census(storage))[writer.key]["messages"])


# -- what is shown ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [None, 1, 3, 7, 100])
async def test_the_history_is_the_last_messages_up_to_each_checkpoint(
    storage: CheckpointStorage, window: int | None
) -> None:
    await admit_window(storage, window, 9)
    assert (await found(storage)).history == window
    for record in await storage.checkpoints("t"):
        shown = list(range(record.rev + 1))[-(window or 100) :]
        assert await said(storage, record.rev) == shown
        assert record.message_count == len(shown)
        assert (await storage.load("t", record.rev)).counts.messages == record.rev + 1


async def test_without_a_history_there_is_none(storage: CheckpointStorage) -> None:
    writer = await admit_window(storage, 0, 9)
    assert await said(storage) == []
    assert {record.message_count for record in await storage.checkpoints("t")} == {0}
    await commit_one(storage, Prune(writer.key, 1))
    assert await message_rows(storage, writer) == [1, 10]  # what the frontiers of the two that are kept read


async def test_a_window_is_paged(storage: CheckpointStorage) -> None:
    writer = await admit_window(storage, 4, 9)
    history = await storage.messages("t")
    assert [row.seq for row in history] == [7, 8, 9, 10]
    for _ in range(2):
        for after in range(12):
            for limit in range(1, 6):
                page = await storage.messages("t", after=after, limit=limit)
                assert page == [row for row in history if row.seq > after][:limit]
        await commit_one(storage, Prune(writer.key, 1))


# -- what is kept ----------------------------------------------------------------------------------------------


async def test_what_no_kept_window_holds_goes_and_nothing_else(storage: CheckpointStorage) -> None:
    writer = await admit_window(storage, 3, 20)
    await commit_one(storage, Label(writer.key, "t", 10, "good"))
    expected = {rev: await said(storage, rev) for rev in (0, 10, 19, 20)}
    assert await message_rows(storage, writer) == list(range(1, 22))  # each is in the window of some checkpoint
    assert await commit_one(storage, Prune(writer.key, 2, 5)) == Pruned(5)  # in slices: 1-5, then the rest
    # The message `n` has the seq n + 1. The first checkpoint shows 0; that of rev 6 shows 4-6.
    assert await message_rows(storage, writer) == [1, *range(5, 22)]
    assert await commit_one(storage, Prune(writer.key, 2)) == Pruned(12)
    assert await message_rows(storage, writer) == [1, 9, 10, 11, 18, 19, 20, 21]
    assert {rev: await said(storage, rev) for rev in expected} == expected
    await commit_one(storage, Drop(writer.key, "t", 10))
    assert await message_rows(storage, writer) == [1, 18, 19, 20, 21]


async def test_what_a_kept_frontier_reads_stays_for_it_and_goes_with_it(storage: CheckpointStorage) -> None:
    writer = Writer("t", window=2)
    writer.admitted(await commit_one(storage, writer.admit(plan=["slow", "a"], body=b"0")))
    await commit_one(storage, writer.append(end=2, plan=["slow", "a"], body=b"1"))
    for step in range(2, 9):
        await commit_one(storage, writer.append(end=max(writer.live), plan=["a"], body=b"%d" % step))
    await commit_one(storage, Prune(writer.key, 1))
    assert await message_rows(storage, writer) == [1, 2, 8, 9]
    assert await said(storage) == [7, 8]
    assert [row.body for row in (await storage.load("t")).messages.values()].count(b"1") == 1
    await commit_one(storage, writer.append(end=3, body=b"9"))  # which alone read it
    await commit_one(storage, writer.append(end=max(writer.live), plan=["a"], body=b"10"))
    await commit_one(storage, Prune(writer.key, 1))
    assert await message_rows(storage, writer) == [1, 10, 11]


async def test_of_one_delta_with_more_than_the_window_only_that_is_kept(storage: CheckpointStorage) -> None:
    writer = await admit_window(storage, 2)
    deltas = [writer.delta(end=1, plan=["slow", "a"], body=b"1")]
    for step in range(2, 7):
        deltas.append(writer.delta(end=max(writer.live), plan=["a"], body=b"%d" % step))
    merged = merge(deltas)
    writer.rev = merged.rev
    await commit_one(storage, Append("t", merged))
    assert await said(storage) == [5, 6]
    assert await message_rows(storage, writer) == [1, 2, 6, 7]  # `slow` reads the second
    await commit_one(storage, writer.append(end=2, body=b"7"))
    await run_steps(storage, writer, 3)
    await commit_one(storage, Prune(writer.key, 1))
    assert await message_rows(storage, writer) == [1, 10, 11]


async def test_messages_that_are_not_history_do_not_count_for_the_window(storage: CheckpointStorage) -> None:
    writer = await admit_window(storage, 3)
    for step in range(1, 13):
        await commit_one(
            storage,
            writer.append(end=min(writer.live), plan=["a"], body=b"%d" % step, history=step % 3 == 0),
        )
    for _ in range(2):
        assert await said(storage) == [6, 9, 12]
        assert await said(storage, 0) == [0]
        await commit_one(storage, Prune(writer.key, 1))
    assert await message_rows(storage, writer) == [1, 7, 10, 13]


# -- forks -----------------------------------------------------------------------------------------------------


async def test_a_fork_inherits_the_window_and_looks_through_it_at_its_parent(storage: CheckpointStorage) -> None:
    writer = await admit_window(storage, 4, 10)
    child, write = writer.fork(await storage.load("t", 6), "child")
    child.admitted(await commit_one(storage, write))
    for step in range(2):
        await commit_one(storage, child.append(end=min(child.live), plan=["a"], body=b"10%d" % step))
    assert (await found(storage, "child")).history == 4
    expected: dict[int, list[int]] = {7: [3, 4, 5, 6], 8: [4, 5, 6, 100], 9: [5, 6, 100, 101]}
    assert {rev: await said(storage, rev, "child") for rev in expected} == expected
    for trace in (writer, child):
        await commit_one(storage, Prune(trace.key, 1))
    assert await message_rows(storage, writer) == [1, 4, 5, 6, 7, 8, 9, 10, 11]
    assert {rev: await said(storage, rev, "child") for rev in (7, 9)} == {7: expected[7], 9: expected[9]}
    page = await storage.messages("child", rev=9, after=6, limit=2)
    assert [int(row.body) for row in page] == [6, 100]
    # As a tombstone the parent keeps what its forks see, and no more.
    await commit_one(storage, Delete(writer.key))
    while await storage.reclaim(1000):
        pass
    assert await message_rows(storage, writer) == [4, 5, 6, 7]
    assert await said(storage, None, "child") == [5, 6, 100, 101]


# -- what a trace counts ---------------------------------------------------------------------------------------


async def test_counters_are_those_of_each_checkpoint_and_a_fork_goes_on_from_them(storage: CheckpointStorage) -> None:
    writer = await admit(storage)
    await run_steps(storage, writer, 2)
    await commit_one(storage, writer.append(end=min(writer.live), plan=["a"], task="second"))
    await run_steps(storage, writer, 1)

    async def counted(trace_id: str, rev: int) -> tuple[object, ...]:
        at = await storage.load(trace_id, rev)
        return at.generation, at.generation_step, at.elapsed, at.tokens_in, at.tokens_out

    assert [await counted("t", rev) for rev in range(5)] == [
        (1, 0, 0.0, 0, 0),
        (1, 0, 0.25, 10, 1),
        (1, 0, 0.5, 30, 3),
        (2, 2, 0.75, 60, 6),
        (2, 2, 1.0, 100, 10),
    ]
    child, write = writer.fork(await storage.load("t", 3), "child")
    child.admitted(await commit_one(storage, write))
    assert await counted("child", 4) == await counted("t", 3)


async def test_the_last_task_is_that_of_admission_until_another_is_added(storage: CheckpointStorage) -> None:
    writer = await admit(storage)
    assert (await found(storage)).last_task == "digest"
    await run_steps(storage, writer, 1)
    await commit_one(storage, writer.append(end=min(writer.live), plan=["a"], task="second"))
    deltas = [writer.append(end=min(writer.live), plan=["a"], task=task) for task in ("third", None)]
    await storage.commit(deltas)
    assert ((await found(storage)).task_digest, (await found(storage)).last_task) == ("digest", "third")
    # A fork has the one that was the last where it begins, although what added it is not kept any more.
    await commit_one(storage, Drop(writer.key, "t", 2))
    await run_steps(storage, writer, 1)
    await commit_one(storage, Prune(writer.key, 1))
    for rev, task in ((0, "digest"), (5, "third")):
        child, write = writer.fork(await storage.load("t", rev), f"child{rev}")
        child.admitted(await commit_one(storage, write))
        assert (await found(storage, f"child{rev}")).last_task == task
        grandchild, write = child.fork(await storage.load(f"child{rev}"), f"grandchild{rev}")
        grandchild.admitted(await commit_one(storage, write))
        assert (await found(storage, f"grandchild{rev}")).last_task == task


async def test_steps_keep_the_word_that_the_node_gave(storage: CheckpointStorage) -> None:
    await run_steps(storage, await admit(storage), 2)
    assert [row.status for row in await storage.steps("t")] == ["odd", None]


async def test_what_was_appended_and_pruned_since_is_there_all_the_same(storage: CheckpointStorage) -> None:
    """As it comes to whoever tries again what failed, and was carried out nevertheless."""
    writer = Writer("t")
    writer.admitted((await storage.commit([writer.admit()]))[0])
    batch = [writer.append(end=step, plan=["a"]) for step in range(1, 6)]
    wanted = [Appended(step) for step in range(1, 6)]
    assert await storage.commit([*batch, Prune(writer.key, 1)]) == [*wanted, Pruned(4)]
    assert await storage.commit(batch) == wanted
    beyond = writer.append(end=6)
    assert isinstance(beyond, Append)
    later = attrs.evolve(beyond, delta=attrs.evolve(beyond.delta, rev=9))
    assert [type(each) for each in await storage.commit([later])] == [OwnershipLost]
